"""Members' logits, computed once per network, images and augmentation, then read."""

import hashlib
import json
from collections.abc import Callable
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
FEWEST = 8
"""The fewest images in a pass, however large they are."""


def images_per_pass(shape: tuple[int, int, int], device: str | torch.device) -> int:
    """Return how many images of (channels, height, width) a pass should take."""
    if torch.device(device).type != "cpu":
        return BATCH
    return min(BATCH, max(FEWEST, PIXELS // (shape[1] * shape[2])))


@torch.no_grad()
def network_logits(
    network: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    split: Split,
    *,
    augmentation: Augmentation | None = None,
    draws: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Float[Tensor, "images classes"]:
    """Return the logits of a network in eval mode for a whole split, in order.

    Args:
        network: moved to `device`.
        prepare: from bytes to what the network takes, such as its `Normalization`.
        split: whose images.
        augmentation: of the images.
        draws: its randomness, a row per image.
        device: where the network runs.
    """
    network = network.to(device).eval()
    rows = []
    for indices in in_order(split, images_per_pass(split.shape, device)):
        images = split.batch(
            indices, augmentation, None if draws is None else draws[indices]
        )
        rows.append(network(prepare(images.to(device))).float().cpu())
    return torch.cat(rows)


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
        if augmentation is not None and augmentation.is_identity:
            augmentation = None
        if augmentation is None:
            seed = view = 0
        key = _key(member, split, augmentation, seed, view)
        if key not in self._seen:
            self._seen.add(key)
            self.images_asked += len(split)
        if key not in self._open:
            path = self.folder / f"{key}.npy"
            if not path.exists():
                self._compute(path, member, split, augmentation, seed, view)
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))  # the oldest
            rows = np.load(path, mmap_mode="c", allow_pickle=False)
            self._open[key] = torch.from_numpy(rows)
        return self._open[key]

    def ensemble_logits(
        self, ensemble: Ensemble, split: Split
    ) -> Float[Tensor, "members images classes"]:
        """Return the logits of all members for the plain images of a split."""
        first, *others = ensemble.members
        logits = self.logits(first, split)
        stacked = logits.new_empty(len(ensemble), *logits.shape)
        stacked[0] = logits
        for row, member in enumerate(others, start=1):  # closed as they pass
            stacked[row] = self.logits(member, split)
        return stacked

    def _compute(
        self,
        path: Path,
        member: Member,
        split: Split,
        augmentation: Augmentation | None,
        seed: int,
        view: int,
    ) -> None:
        draws = None
        if augmentation is not None:
            draws = augmentation.draws(len(split), seed, view)
        rows = network_logits(
            member.network(),
            member.prepare,
            split,
            augmentation=augmentation,
            draws=draws,
            device=self.device,
        )
        rows = member.in_order(rows).contiguous()
        self.images_run += len(split)
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


def _key(
    member: Member,
    split: Split,
    augmentation: Augmentation | None,
    seed: int,
    view: int,
) -> str:
    parts = {
        "format": 1,
        "member": member.sha256,
        "normalization": member.info.normalization.model_dump(mode="json"),
        "architecture": member.info.architecture,
        "images": split.fingerprint,
        "augmentation": augmentation.model_dump(mode="json") if augmentation else None,
        "seed": seed,
        "view": view,
    }
    if member.order is not None:
        parts["order"] = member.order
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
