"""An exported file against the network that it was made of, on images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line
from metaensemble.core.seeds import generator
from metaensemble.data import Split
from metaensemble.data.split import TensorSplit
from metaensemble.teachers import Member
from metaensemble.teachers.member import sized_pixels

TOLERANCE = 1e-4
"""Largest difference of logits, as a part of the largest logit (or of 1)."""
TIE = 1e-5
"""Two logits this near, as a part of the image's largest (or of 1), are a tie: in
float32, sums in another order differ by as much."""
SIZES = (1, 3)
"""Sizes of the first batches; the rest run by `BATCH`."""
BATCH = 100
"""Images in most batches."""
RANDOM_IMAGES = 256
"""How many are drawn where there are no real ones."""


@dataclass(frozen=True)
class Verified:
    """How near an exported file comes to its network."""

    images: int
    """How many it was tried on."""
    max_difference: float
    """Of logits, absolute."""
    unequal_decisions: int
    """Images of which it names another class, ties apart."""
    ties: int
    """Images of which it names another class that was as good."""


def verify(member: Member, run: Callable[[Tensor], Tensor], split: Split) -> Verified:
    """Return how an exported file compares with its network on every image of a split.

    The first image runs alone, the next three together, the others by the hundred.

    Args:
        member: whose network was exported; it takes the images as bytes.
        run: what runs the file; it takes the pixels.
        split: whose images.

    Raises:
        InputError: the file fails, or its logits differ by more than `TOLERANCE`.
    """
    network = member.network()
    want, got = [], []
    for indices in _batches(len(split)):
        images = split.batch(indices)
        with torch.inference_mode():
            want.append(network(member.prepare(images)).float())
        try:
            got.append(
                run(sized_pixels(images, member.info.input_shape[1:]).contiguous())
            )
        except Exception as error:  # each runtime has its own types
            raise InputError(
                f"an exported file must run on batches of any size, but on one of "
                f"{len(indices)} it fails ({one_line(error)}); nothing was written; "
                "choose another --format"
            ) from error
    wanted, found = torch.cat(want), torch.cat(got)
    verified = compared(wanted, found)
    allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not verified.max_difference <= allowed:  # also where it is NaN
        raise InputError(
            f"an exported file's logits must be the student's, but they differ by up "
            f"to {verified.max_difference:.3g} on {len(wanted)} images where "
            f"{allowed:.3g} is allowed; nothing was written; choose another --format"
        )
    return verified


def compared(
    want: Float[Tensor, "images classes"], got: Float[Tensor, "images classes"]
) -> Verified:
    """Return the difference of logits and the number of other decisions.

    Where decisions differ, it is a tie if the two classes' own logits are within `TIE`
    of each other in `want`.
    """
    mine, theirs = want.argmax(1, keepdim=True), got.argmax(1, keepdim=True)
    gap = (want.gather(1, mine) - want.gather(1, theirs)).squeeze(1)
    near = gap <= TIE * want.abs().amax(1).clamp(min=1)
    other = (mine != theirs).squeeze(1)
    return Verified(
        images=len(want),
        max_difference=float((want - got).abs().max()),
        unequal_decisions=int((other & ~near).sum()),
        ties=int((other & near).sum()),
    )


def random_images(shape: tuple[int, int, int]) -> Split:
    """Return images of random bytes, the same at every call, where none are at hand."""
    size = (RANDOM_IMAGES, *shape)
    random = generator("export", "images")
    images = torch.randint(0, 256, size, generator=random, dtype=torch.uint8)
    return TensorSplit(images, torch.zeros(RANDOM_IMAGES, dtype=torch.int64))


def _batches(count: int) -> list[Tensor]:
    """Return the indices of `count` images: batches of `SIZES`, then of `BATCH`."""
    first = list(SIZES) if count > sum(SIZES) else [1] * min(count, 1)
    rest = count - sum(first)
    sizes = [*first, *[BATCH] * (rest // BATCH), rest % BATCH]
    return [batch for batch in torch.arange(count).split(sizes) if len(batch)]
