"""A split: images in a fixed order with their labels, read in batches."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from metaensemble.data.augmentation import Augmentation

UNKNOWN = -1
"""The label of an image whose class is not known."""


class Split(ABC):
    """Images in a fixed order; where they lie is the business of the two subclasses.

    Attributes:
        labels: int64 (n,), `UNKNOWN` where there is none.
        shape: (channels, height, width) of every image.
    """

    labels: Tensor
    shape: tuple[int, int, int]

    def __init__(
        self, labels: Int64[Tensor, " images"], shape: tuple[int, int, int]
    ) -> None:
        self.labels = labels
        self.shape = shape

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images and their order, labels excluded; computed once.

        Streamed images count by relative path and file size, so that no pixel is read.
        """
        return self._fingerprint()

    @abstractmethod
    def batch(
        self,
        indices: Int64[Tensor, " batch"],
        augmentation: Augmentation | None = None,
        draws: Float32[Tensor, "batch draws"] | None = None,
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return the images at `indices`, augmented if an augmentation is given.

        Args:
            indices: int64 (batch,), repeats allowed.
            augmentation: applied as `draws` say; None leaves the images as they are.
            draws: row i is the randomness of the i-th image of the batch (see
                `Augmentation.draws`); needed unless the augmentation is the identity.
        """

    @abstractmethod
    def subset(self, indices: Int64[Tensor, " chosen"]) -> "Split":
        """Return the split of the images at `indices`, in that order."""

    def without_labels(self) -> "Split":
        """Return the same images with all labels `UNKNOWN`; nothing is copied."""
        return self.with_labels(torch.full_like(self.labels, UNKNOWN))

    def with_labels(self, labels: Tensor) -> "Split":
        """Return the same images with these labels; nothing is copied.

        Args:
            labels: int64 (n,), one per image, `UNKNOWN` where there is none.

        Raises:
            ValueError: the labels are not int64 or not one per image.
        """
        _demand_labels(labels, len(self))
        twin = copy.copy(self)
        twin.labels = labels
        return twin

    @abstractmethod
    def _fingerprint(self) -> str: ...

    @abstractmethod
    def _followed_by(self, others: Sequence["Split"]) -> "Split":
        """Return this split and the others, of the same class and shape, as one."""


class TensorSplit(Split):
    """A split whose images lie in memory as one uint8 tensor (n, c, h, w)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                "images must be one uint8 tensor (n, channels, height, width), but are "
                f"{images.dtype} {tuple(images.shape)}; scale and stack them"
            )
        _demand_labels(labels, len(images))
        channels, height, width = images.shape[1:]
        super().__init__(labels, (channels, height, width))
        self.images = images

    def batch(
        self,
        indices: Int64[Tensor, " batch"],
        augmentation: Augmentation | None = None,
        draws: Float32[Tensor, "batch draws"] | None = None,
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return the images at `indices`; see `Split.batch`."""
        images = self.images.index_select(0, indices)
        if augmentation is None or augmentation.is_identity:
            return images
        return augmentation(images, needed(draws))

    def subset(self, indices: Int64[Tensor, " chosen"]) -> "TensorSplit":
        """Return the split of the images at `indices`, copied."""
        return TensorSplit(
            self.images.index_select(0, indices), self.labels.index_select(0, indices)
        )

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for chunk in self.images.split(4096):
            digest.update(chunk.contiguous().cpu().numpy().data)
        return digest.hexdigest()

    def _followed_by(self, others: Sequence[Split]) -> "TensorSplit":
        splits = [self, *(s for s in others if isinstance(s, TensorSplit))]
        return TensorSplit(
            torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])
        )


def concatenate(splits: Sequence[Split]) -> Split:
    """Return the images of all splits, in order, as one split.

    Raises:
        ValueError: there is no split, or they differ in image shape or in where their
            images lie (memory or files).
    """
    if not splits:
        raise ValueError("concatenate needs at least one split, but got none")
    kinds = {(type(split).__name__, split.shape) for split in splits}
    if len(kinds) > 1:
        raise ValueError(
            "splits must agree in class and image shape to be concatenated, but are "
            f"{sorted(kinds)}; load them with the same stream and image_size"
        )
    first, *others = splits
    return first._followed_by(others) if others else first


def needed(draws: Tensor | None) -> Tensor:
    """Return `draws`, which an augmentation that is not the identity cannot lack."""
    if draws is None:
        raise ValueError(
            "an augmentation needs draws, one row per image, but got none; "
            "pass rows of augmentation.draws(count, seed, view)"
        )
    return draws


def _demand_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels must be int64 of shape ({count},), one per image, but are "
            f"{labels.dtype} {tuple(labels.shape)}; convert them"
        )
