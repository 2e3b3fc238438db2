"""Data from a word of the command line: the kind is detected, the splits are cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.seeds import permutation
from metaensemble.data.augmentation import Augmentation, parse_augmentation
from metaensemble.data.cifar import is_cifar, read_cifar
from metaensemble.data.digits import read_digits
from metaensemble.data.folder import is_image_folder, read_image_folder
from metaensemble.data.mnist import is_mnist, read_mnist
from metaensemble.data.multiview import is_multiview, read_multiview
from metaensemble.data.normalization import Normalization
from metaensemble.data.parquet import is_parquet_folder, read_parquet_folder
from metaensemble.data.raw import RawData
from metaensemble.data.split import Split

KINDS = (
    "digits, an image folder (train/CLASS/*, test/CLASS/*), a folder of parquet files "
    "(train*.parquet, test*.parquet), CIFAR's python folder or tarball, a folder of "
    "MNIST's idx files, or multiview"
)
MIN_VALIDATION = 2


@dataclass(frozen=True)
class ImageData:
    """A classification task: its splits, its classes, and how its images are treated.

    Attributes:
        name: short name for reports.
        classes: class names; a label is an index into them.
        train: labelled images to learn from.
        validation: labelled images to select with, apart from `train`.
        test: the official test images, for the end.
        unlabelled: training images beyond the labelled budget; labels are -1.
        augmentation: what training does to images.
        normalization: the statistics of `train`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    unlabelled: Split | None
    augmentation: Augmentation
    normalization: Normalization

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.train.shape


def load_data(
    spec: str | Path,
    *,
    limit_train: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    classes: Sequence[str] = (),
    stream: bool | None = None,
    augment: str = "auto",
    unlabelled: bool = True,
) -> ImageData:
    """Return the data that `spec` names, cut into splits.

    The official training images are shuffled by `seed`; the first `limit_train` are the
    labelled budget, whose last `validation_fraction` is the validation split; the
    images beyond the budget lose their labels. Data that have a validation split of
    their own (a folder ``val`` beside ``test``) keep it, and all of the budget is for
    training.

    Args:
        spec: "digits", "multiview" (with fields: "multiview,mu=0.2") or a path; see
            `KINDS`.
        limit_train: the labelled budget, validation included; None: all.
        validation_fraction: share of the budget, in (0, 0.5].
        seed: decides the shuffle.
        image_size: height and width of the images of a folder or of parquet files;
            None: their own if they agree and it is at most 512, else 224.
        classes: the class names in another order, that of the labels to come; empty:
            the data's own order, which of an image folder is that of sorted names.
        stream: whether an image folder stays on disk and is decoded batch by batch;
            None: if its decoded images exceed 4 GiB.
        augment: "none", "flip", "crop", "crop_flip" or "auto", the data's default.
        unlabelled: whether images beyond the budget are read at all.

    Raises:
        MissingFileError: there is no such path, or a part of the data is missing.
        InputError: a file is damaged or a value is out of its range.
    """
    if not 0 < validation_fraction <= 0.5:
        raise InputError(
            "validation_fraction must be in (0, 0.5], but is "
            f"{validation_fraction}; choose for instance 0.1"
        )
    if image_size is not None and image_size < 1:
        raise InputError(
            f"image_size must be at least 1, but is {image_size}; choose for instance "
            "224"
        )
    raw = _read(spec, image_size=image_size, stream=stream)
    budget = len(raw.train.labels) if limit_train is None else limit_train
    own = raw.validation
    num_validation = 0 if own else round(budget * validation_fraction)
    _refuse_odd_budget(raw, budget, len(own.labels) if own else num_validation)
    order = permutation(len(raw.train.labels), seed, "split")
    num_train = budget - num_validation
    train = raw.train.read(order[:num_train])
    beyond = order[budget:]
    data = ImageData(
        name=raw.name,
        classes=raw.classes,
        train=train,
        validation=(
            own.read(torch.arange(len(own.labels)))
            if own
            else raw.train.read(order[num_train:budget])
        ),
        test=raw.test.read(torch.arange(len(raw.test.labels))),
        unlabelled=(
            raw.train.read(beyond).without_labels()
            if unlabelled and len(beyond) > 0
            else None
        ),
        augmentation=parse_augmentation(augment, default=raw.augmentation),
        normalization=Normalization.of(train),
    )
    return _in_order(data, tuple(classes)) if classes else data


def is_embedded(spec: str | Path) -> bool:
    """Return whether `spec` is a word that needs no file; a path of that name is not.

    A file named so is reached as ``./digits``.
    """
    return spec == "digits" or is_multiview(spec)


def _read(spec: str | Path, *, image_size: int | None, stream: bool | None) -> RawData:
    """Return the raw data of whichever kind `spec` is."""
    path = Path(spec)
    if is_embedded(spec):
        _refuse_stream(path, stream)
        raw = read_digits() if spec == "digits" else read_multiview(str(spec))
        _refuse_other_size(raw, image_size)
        return raw
    if not path.exists():
        raise MissingFileError(
            f"data must be {KINDS}, but {path} does not exist; check the path"
        )
    if is_parquet_folder(path):
        _refuse_stream(path, stream)
        return read_parquet_folder(path, image_size=image_size)
    if is_image_folder(path):
        return read_image_folder(path, image_size=image_size, stream=stream)
    _refuse_stream(path, stream)
    if is_cifar(path):
        raw = read_cifar(path)
    elif is_mnist(path):
        raw = read_mnist(path)
    else:
        raise InputError(
            f"data must be {KINDS}, but {path} is none of them; arrange it as one"
        )
    _refuse_other_size(raw, image_size)
    return raw


def _in_order(data: ImageData, classes: tuple[str, ...]) -> ImageData:
    """Return the data with its classes, and so its labels, in another order."""
    if sorted(classes) != sorted(data.classes):
        named = ", ".join(map(repr, data.classes[:10]))
        raise InputError(
            f"--classes must be the {data.num_classes} classes of {data.name} in "
            f"another order, each once, but they are not; its own are {named}"
            + ", ..."
            * (data.num_classes > 10)
        )
    labels = torch.tensor([classes.index(name) for name in data.classes])
    train, validation, test = (
        split.with_labels(labels[split.labels])
        for split in (data.train, data.validation, data.test)
    )
    return replace(data, classes=classes, train=train, validation=validation, test=test)


def _refuse_stream(path: Path, stream: bool | None) -> None:
    if stream:
        raise InputError(
            f"only an image folder can be streamed, but {path} is none; "
            "leave out stream"
        )


def _refuse_other_size(raw: RawData, image_size: int | None) -> None:
    shape = raw.train.read(torch.arange(1)).shape
    if image_size is not None and shape[1:] != (image_size, image_size):
        raise InputError(
            f"image_size applies to image folders and parquet files, but {raw.name} "
            f"has images of {shape[1]} x {shape[2]}; leave out image_size"
        )


def _refuse_odd_budget(raw: RawData, budget: int, num_validation: int) -> None:
    available = len(raw.train.labels)
    if not 1 <= budget <= available:
        raise InputError(
            f"limit_train must be between 1 and the {available} training images of "
            f"{raw.name}, but is {budget}; choose another limit"
        )
    if num_validation < MIN_VALIDATION:
        raise InputError(
            f"the validation split must have at least {MIN_VALIDATION} images, but "
            f"{budget} training images leave it {num_validation}; raise limit_train or "
            "validation_fraction"
        )
