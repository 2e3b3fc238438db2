"""Image files too many for memory, decoded when a batch asks for them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.decode import decode, decode_all
from metaensemble.data.split import Split, needed


class StreamedSplit(Split):
    """A split whose images are files, decoded by a few threads batch by batch."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Int64[Tensor, " images"],
        shape: tuple[int, int, int],
    ) -> None:
        """Name the files.

        Args:
            root: the data's folder; not part of the fingerprint, so it may move.
            paths: each image's path below `root`.
            labels: int64 (n,), one per path.
            shape: (channels, height, width) to which images are brought.
        """
        if len(paths) != len(labels):
            raise ValueError(
                f"every image must have one label, but there are {len(paths)} paths "
                f"and {len(labels)} labels; pass as many of each"
            )
        super().__init__(labels, shape)
        self.root = root
        self.paths = list(paths)

    def batch(
        self,
        indices: Int64[Tensor, " batch"],
        augmentation: Augmentation | None = None,
        draws: Float32[Tensor, "batch draws"] | None = None,
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return the images at `indices`; see `Split.batch` and `decode`."""
        rows = indices.tolist()
        numbers: np.ndarray | None = None
        if augmentation is not None and not augmentation.is_identity:
            numbers = needed(draws).cpu().numpy()

        def decode_one(index: int) -> np.ndarray:
            path = self.root / self.paths[rows[index]]
            own = None if numbers is None else numbers[index]
            return decode(path, str(path), self.shape, augmentation, own)

        return decode_all(len(rows), self.shape, decode_one)

    def subset(self, indices: Int64[Tensor, " chosen"]) -> "StreamedSplit":
        """Return the split of the files at `indices`."""
        paths = [self.paths[index] for index in indices.tolist()]
        return StreamedSplit(self.root, paths, self.labels[indices], self.shape)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.shape).encode())
        for path in self.paths:
            try:
                size = (self.root / path).stat().st_size
            except OSError as error:
                raise InputError(
                    f"the images must stay in place while they are used, but "
                    f"{self.root / path} cannot be found; put it back"
                ) from error
            digest.update(f"{path}\0{size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _followed_by(self, others: Sequence[Split]) -> "StreamedSplit":
        splits = [self, *(s for s in others if isinstance(s, StreamedSplit))]
        if len({split.root for split in splits}) > 1:
            raise ValueError(
                "streamed splits must lie below one folder to be concatenated, but "
                f"lie below {sorted({str(s.root) for s in splits})}; load them together"
            )
        paths = [path for split in splits for path in split.paths]
        labels = torch.cat([split.labels for split in splits])
        return StreamedSplit(self.root, paths, labels, self.shape)
