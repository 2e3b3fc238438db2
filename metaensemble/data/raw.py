"""What a reader of one kind of data hands over: labels now, images when asked."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.split import Split, TensorSplit

NUMBERS = {int, float, bool}
"""Types of what a list of labels may hold; as lists in lists, few bytes are many."""


class Source(ABC):
    """The labels of one official split, and a way to read any of its images."""

    labels: Tensor

    @abstractmethod
    def read(self, rows: Int64[Tensor, " rows"]) -> Split:
        """Return the split of these rows, in their order; only they are decoded."""


class ArraySource(Source):
    """Images that the format stores undecoded, as one tensor."""

    def __init__(
        self,
        images: UInt8[Tensor, "images channels height width"],
        labels: Int64[Tensor, " images"],
    ) -> None:
        self.whole = TensorSplit(images, labels)
        self.labels = labels

    def read(self, rows: Int64[Tensor, " rows"]) -> TensorSplit:
        """Return a copy of these rows."""
        return self.whole.subset(rows)


@dataclass(frozen=True)
class RawData:
    """One data set as its files say it, before budget and validation are cut."""

    name: str
    classes: tuple[str, ...]
    train: Source
    test: Source
    augmentation: Augmentation
    validation: Source | None = None
    """Images to select with, where the data have some of their own beside test."""


def numbered_classes(train_labels: Tensor, where: str) -> tuple[str, ...]:
    """Return "0".."K-1" for labels that come without names.

    Raises:
        InputError: a label is negative, or some class below the largest never occurs:
            then the largest is more likely damage than a class.
    """
    refuse_negative(train_labels, where)
    used = train_labels.unique()  # ascending
    gaps = (used != torch.arange(len(used))).nonzero()
    if len(gaps) > 0:
        raise InputError(
            f"labels must be the numbers 0 to K-1, each in use, but {where} has a "
            f"label {int(used[-1])} and no label {int(gaps[0])}; number them anew"
        )
    return tuple(str(label) for label in used.tolist())


def refuse_negative(labels: Tensor, where: str) -> None:
    """Raise `InputError` if an image has no class (a label below 0)."""
    if bool((labels < 0).any()):
        row = int((labels < 0).nonzero()[0])
        raise InputError(
            f"every image must have a class, but {where} has the label "
            f"{int(labels[row])} in row {row} (hidden labels?); use a split with labels"
        )


def refuse_empty(items: Sized, where: str) -> None:
    """Raise `InputError` if a split holds no image."""
    if len(items) == 0:
        raise InputError(f"{where} must hold images, but holds none; fill it")


def refuse_foreign_labels(labels: Tensor, classes: Sequence[str], where: str) -> None:
    """Raise `InputError` unless labels are in 0..K-1."""
    refuse_negative(labels, where)
    largest = int(labels.max())
    if largest >= len(classes):
        row = int(labels.argmax())
        raise InputError(
            f"labels must be below the number of classes ({len(classes)}), but {where} "
            f"has the label {largest} in row {row}; repair the labels or class names"
        )


def refuse_odd_classes(classes: Sequence[str], where: str) -> None:
    """Raise `InputError` unless there are at least two classes, named apart.

    In Unicode: other names cannot be written to a member's record.
    """
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(
                f"class names must be Unicode, but {where} names a class {name!r}; "
                "rename it"
            )
    if len(classes) < 2:
        raise InputError(
            f"data must have at least 2 classes, but {where} has {len(classes)}; "
            "add images of another class"
        )
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"class names must differ, but {where} names {times} classes {name!r}; "
            "rename them"
        )


def as_labels(values: object, where: str) -> Int64[Tensor, " images"]:
    """Return a sequence of integers as int64 labels.

    Raises:
        InputError: `values` is something else.
    """
    try:
        if isinstance(values, list) and not set(map(type, values)) <= NUMBERS:
            raise TypeError("they are not all numbers")
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"labels must be integers, but those of {where} are not "
            f"({one_line(error)}); number the classes 0 to K-1"
        ) from error
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"labels must be a list of integers, but {where} holds {labels.dtype} of "
            f"shape {tuple(labels.shape)}; number the classes 0 to K-1"
        )
    return labels.long()
