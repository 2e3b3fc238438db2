"""Members' logits, computed once per network, images and augmentation, then read."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from metaensemble.core.errors import DiskError
from metaensemble.core.files import atomic_path
from metaensemble.data import Augmentation, Split, in_order
from metaensemble.teachers.ensemble import Ensemble
from metaensemble.teachers.member import Member

BATCH = 500
"""The most images in one forward pass of a teacher."""
PIXELS = 2**16
"""Positions in one forward pass on the CPU. Larger maps do not stay in the cache, and
above 32 MB the system takes and gives them anew in every layer: twice to three times
the seconds (benchmarks/profile)."""
MOST_OPEN = 512
"""Files of outputs that are open at a time; the system allows a process 1,024."""
TOGETHER = 2**30
"""Bytes of the networks, and of their logits, that look at a batch one after the other.
So images are decoded and augmented once for all of them, in bounded memory."""
MEMBERS_TOGETHER = 4
"""Members at most, however small: their files appear, and progress is told, at once."""
FEWEST = 8
"""The fewest images in a pass, however large they are."""


def images_per_pass(shape: tuple[int, int, int], device: str | torch.device) -> int:
    """Return how many images of (channels, height, width) a pass should take."""
    if torch.device(device).type != "cpu":
        return BATCH
    return min(BATCH, max(FEWEST, PIXELS // (shape[1] * shape[2])))


Prepare = Callable[[Tensor], Tensor]
"""From bytes to what a network takes, such as its `Normalization`."""


def network_logits(
    network: nn.Module,
    prepare: Prepare,
    split: Split,
    *,
    device: str | torch.device = "cpu",
) -> Float[Tensor, "images classes"]:
    """Return the logits of a network in eval mode for a whole split, in order.

    Args:
        network: moved to `device`.
        prepare: what it takes.
        split: whose images.
        device: where the network runs.
    """
    (logits,) = networks_logits([(network, prepare)], split, device=device)
    return logits


@torch.no_grad()
def networks_logits(
    networks: Sequence[tuple[nn.Module, Prepare]],
    split: Split,
    *,
    augmentation: Augmentation | None = None,
    draws: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> list[Float[Tensor, "images classes"]]:
    """Return the logits of several networks, each image decoded and augmented once.

    Args:
        networks: moved to `device`, each with what it takes.
        split: whose images.
        augmentation: of the images.
        draws: its randomness, a row per image.
        device: where the networks run.
    """
    ready = [(network.to(device).eval(), prepare) for network, prepare in networks]
    rows: list[list[Tensor]] = [[] for _ in ready]
    for indices in in_order(split, images_per_pass(split.shape, device)):
        images = split.batch(
            indices, augmentation, None if draws is None else draws[indices]
        ).to(device)
        for own, (network, prepare) in zip(rows, ready, strict=True):
            own.append(network(prepare(images)).float().cpu())
    return [torch.cat(own) for own in rows]


def together(members: Sequence[Member], images: int) -> Iterator[list[Member]]:
    """Yield groups of members that, with the logits of so many images, fit in memory.

    A group has at most `TOGETHER` bytes and `MEMBERS_TOGETHER` members, at least one.
    """
    group: list[Member] = []
    size = 0
    for member in members:
        logits = 4 * images * len(member.info.classes)
        own = member.path.stat().st_size + logits
        full = len(group) >= MEMBERS_TOGETHER or size + own > TOGETHER
        if group and full:
            yield group
            group, size = [], 0
        group.append(member)
        size += own
    if group:
        yield group


class OutputCache:
    """Logits of members on disk, keyed by member, images, augmentation and view.

    One ``.npy`` file per (member, split, augmentation, seed, view), memory-mapped when
    read, so that memory does not grow with the number of teachers. A file appears whole
    or not at all, so that several runs may share a folder.

    Args:
        folder: where the files lie; made when needed.
        device: where teachers run.
    """

    def __init__(
        self,
        folder: Path,
        device: str | torch.device = "cpu",
    ) -> None:
        self.folder = folder
        self.device = device
        self.images_asked = 0  # teacher forward passes that a cold cache would need
        self.images_run = 0  # those that were needed
        self._seen: set[str] = set()
        self._open: dict[str, Tensor] = {}

    def logits(
        self,
        member: Member,
        split: Split,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        view: int = 0,
    ) -> Float[Tensor, "images classes"]:
        """Return one member's logits for every image of a split, in order.

        Args:
            member: whose logits.
            split: whose images.
            augmentation: applied to the images with the draws of (seed, view); none, or
                one that changes nothing, gives the plain images.
            seed: of the augmentation.
            view: which augmented copy of the images.
        """
        images = _Images.of(split, augmentation, seed, view)
        key = images.key(member)
        if key not in self._seen:
            self._seen.add(key)
            self.images_asked += len(split)
        if key not in self._open:
            path = self._path(key)
            if not path.exists():
                self._compute([member], images)
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))  # the oldest
            rows = np.load(path, mmap_mode="c", allow_pickle=False)
            self._open[key] = torch.from_numpy(rows)
        return self._open[key]

    def compute(
        self,
        members: Sequence[Member],
        split: Split,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        view: int = 0,
        *,
        told: Callable[[int], None] | None = None,
    ) -> None:
        """Compute what is missing of several members' logits, in one go.

        `logits` would do it member by member, and decode the images for each.

        Args:
            members: whose logits.
            split: whose images.
            augmentation: as of `logits`.
            seed: as of `logits`.
            view: as of `logits`.
            told: called with the number of members that are done, now and then.
        """
        images = _Images.of(split, augmentation, seed, view)
        done = 0
        for group in together(members, len(split)):
            missing = {images.key(one): one for one in group}
            missing = {k: m for k, m in missing.items() if not self._path(k).exists()}
            if missing:
                self._compute(list(missing.values()), images)
            done += len(group)
            if told is not None:
                told(done)

    def ensemble_logits(
        self, ensemble: Ensemble, split: Split
    ) -> Float[Tensor, "members images classes"]:
        """Return the logits of all members for the plain images of a split."""
        self.compute(ensemble.members, split)
        first, *others = ensemble.members
        logits = self.logits(first, split)
        stacked = logits.new_empty(len(ensemble), *logits.shape)
        stacked[0] = logits
        for row, member in enumerate(others, start=1):  # closed as they pass
            stacked[row] = self.logits(member, split)
        return stacked

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _compute(self, members: Sequence[Member], images: "_Images") -> None:
        logits = networks_logits(
            [(member.network(), member.prepare) for member in members],
            images.split,
            augmentation=images.augmentation,
            draws=images.draws(),
            device=self.device,
        )
        for member, rows in zip(members, logits, strict=True):
            self.images_run += len(rows)
            self._write(images.key(member), member.in_order(rows).contiguous())

    def _write(self, key: str, rows: Tensor) -> None:
        path = self._path(key)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                np.save(_Stream(handle.write), rows.numpy(), allow_pickle=False)
        except DiskError as error:
            raise DiskError(f"{error}; --cache may name a folder elsewhere") from error


@dataclass(frozen=True)
class _Stream:
    """What numpy does not take for a file.

    Into a file it writes by itself, and tells nothing where the disk is full and the
    array so small that it is only written when the file is closed.
    """

    write: Callable[[bytes], object]


@dataclass(frozen=True)
class _Images:
    """A view of a split; without an augmentation there is one of each split."""

    split: Split
    augmentation: Augmentation | None
    seed: int
    view: int

    @classmethod
    def of(
        cls, split: Split, augmentation: Augmentation | None, seed: int, view: int
    ) -> "_Images":
        if augmentation is None or augmentation.is_identity:
            return cls(split, None, 0, 0)
        return cls(split, augmentation, seed, view)

    def draws(self) -> Tensor | None:
        if self.augmentation is None:
            return None
        return self.augmentation.draws(len(self.split), self.seed, self.view)

    def key(self, member: Member) -> str:
        """Return the name of the file of a member's logits."""
        augmentation = self.augmentation
        parts = {
            "format": 1,
            "member": member.sha256,
            "normalization": member.info.normalization.model_dump(mode="json"),
            "architecture": member.info.architecture,
            "images": self.split.fingerprint,
            "augmentation": augmentation.model_dump(mode="json")
            if augmentation
            else None,
            "seed": self.seed,
            "view": self.view,
        }
        if member.order is not None:
            parts["order"] = member.order
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:40]
