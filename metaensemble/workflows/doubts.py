"""Are bare state dicts run as they were trained? Only their scores can tell.

A bare state dict does not say how its images were normalised, of what size they were,
or in which order its classes are. Each mistake leaves a network that runs, and is poor.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from metaensemble.data import ImageData, Normalization, Split, parse_normalization
from metaensemble.teachers import Ensemble, MemberInfo
from metaensemble.teachers.member import sized_pixels
from metaensemble.teachers.outputs import network_logits
from metaensemble.workflows.options import Session

SIZES = (32, 64, 96, 128)
"""Heights and widths that are tried where the data's images are larger."""
SHARE, FEWEST, MOST = 20, 64, 256
"""Looked at is one training image in 20, but no fewer and no more than these: all tries
together cost less than a pass of one member over any but the smallest data."""
GOOD = 0.95
"""A member this accurate is not doubted."""
POOR = 0.5
"""Of one below this, the order of the classes is doubted."""
CLEAR = 0.05
"""Gain of accuracy, beside two standard errors, that is no chance of many tries."""
PER_CLASS = 10
"""Images that it takes to tell the order of the classes."""
SPELLED = 20
"""Classes whose order a message spells out."""


def doubts(session: Session, ensemble: Ensemble) -> list[str]:
    """Return what speaks against how bare members are run: a sentence, or none.

    Looked at is the first member whose file says nothing about itself; the options that
    say it in its place hold for all. Training images decide, test images play no part.
    """
    bare = next((m for m in ensemble.members if not m.recorded), None)
    if bare is None:
        return []
    data = session.data
    network = bare.network().to(session.device)
    count = min(len(data.train), max(FEWEST, min(MOST, len(data.train) // SHARE)))
    split = data.train.subset(torch.arange(count))
    full, own = data.input_shape[1:], bare.info.normalization
    right = _decided(network, split, own, full, session.device) == split.labels
    accuracy = float(right.double().mean())
    if accuracy >= GOOD:
        return []
    told = f"{bare.name} is right on {100 * accuracy:.0f}% of {count} training images"
    most, better = CLEAR, ""
    for flags, normalization, size in _other_ways(bare.info, data):
        try:
            other = _decided(network, split, normalization, size, session.device)
        except Exception:  # a network of the user's own may not bear another size
            continue
        gain = _clear_gain(other == split.labels, right)
        if gain > most:
            most, better = gain, flags
    gain, order = (0.0, [])
    if accuracy < POOR:
        gain, order = _better_order(network, bare.info, session)
    if gain > most:
        spelled = " ".join(f"'{data.classes[c]}'" for c in order)
        return [
            f"{told}, but its logits fit the classes in another order: say which, by "
            f"--classes {spelled if len(order) <= SPELLED else 'NAME NAME ...'}"
        ]
    if better:
        return [
            f"{told}, but on {100 * (accuracy + most):.0f}% with {better}: say how "
            "images were treated in its training"
        ]
    if accuracy < min(POOR, 2 / data.num_classes):
        return [
            f"{told}, where chance makes {100 / data.num_classes:.0f}%: check "
            "--architecture, --normalization, --image-size and --classes"
        ]
    return []


def _other_ways(
    info: MemberInfo, data: ImageData
) -> Iterator[tuple[str, Normalization, tuple[int, int]]]:
    """Yield flags, normalisation and size of other ways to treat the images."""
    channels, *full = data.input_shape
    half = ",".join(["0.5"] * channels)
    texts = ["none", f"{half}/{half}", "data", *(["imagenet"] if channels == 3 else [])]
    ways = {t: parse_normalization(t, channels) or data.normalization for t in texts}
    ways = {text: way for text, way in ways.items() if way != info.normalization}
    for height, width in [full, *([s, s] for s in SIZES if s < min(full))]:
        flags = "" if [height, width] == full else f"--image-size {height}"
        if flags:
            yield flags, info.normalization, (height, width)
        for text, normalization in ways.items():
            named = f"{flags} --normalization {text}".strip()
            yield named, normalization, (height, width)


def _decided(
    network: nn.Module,
    split: Split,
    normalization: Normalization,
    size: tuple[int, int],
    device: torch.device,
) -> Int64[Tensor, " images"]:
    """Return the decisions of a network for images of this size, normalised so."""

    def prepare(images: Tensor) -> Tensor:
        return normalization(sized_pixels(images, size))

    return network_logits(network, prepare, split, device=device).argmax(-1)


def _clear_gain(right: Tensor, before: Tensor) -> float:
    """Return by how much a share of images rose; 0 within two standard errors."""
    gain = right.double() - before.double()
    error = float(gain.std()) / len(gain) ** 0.5
    return float(gain.mean()) if gain.mean() > 2 * error else 0.0


def _better_order(
    network: nn.Module, info: MemberInfo, session: Session
) -> tuple[float, list[int]]:
    """Return which class each logit fits best, and the gain of accuracy by it.

    Assigned on every other image, and judged on those between; a gain of 0 where it is
    not clear, or images are too few to tell.
    """
    data = session.data
    count = 2 * PER_CLASS * data.num_classes
    if len(data.train) < count:
        return 0.0, []
    split = data.train.subset(torch.arange(count))
    size = data.input_shape[1:]
    decided = _decided(network, split, info.normalization, size, session.device)
    pairs = split.labels * data.num_classes + decided
    table = pairs[::2].bincount(minlength=data.num_classes**2)
    table = table.reshape(data.num_classes, data.num_classes)  # (class, logit)
    logits = torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1])
    between, labels = decided[1::2], split.labels[1::2]
    gain = _clear_gain(logits[labels] == between, labels == between)
    return gain, logits.argsort().tolist()
