"""Image folders: ``train/CLASS/*``, ``test/CLASS/*`` and, if any, ``val/CLASS/*``."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data.augmentation import standard
from metaensemble.data.decode import agreed_shape, decode, decode_all
from metaensemble.data.raw import RawData, Source, refuse_odd_classes
from metaensemble.data.split import Split, TensorSplit
from metaensemble.data.streamed import StreamedSplit

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
SUFFIXES += (".pgm", ".jfif")
TEST_NAMES = ("test", "val", "valid")
"""Folder names for test images: the first that is there. If that is ``test``, the
next that is there holds images for validation."""

MEMORY_BUDGET = 4 * 2**30
"""Bytes of decoded images above which a folder is streamed."""

SAMPLE = 1_000
"""Images, spread evenly, whose headers decide on shape and colour."""


def is_image_folder(path: Path) -> bool:
    """Tell whether `path` holds a ``train`` folder."""
    return (path / "train").is_dir()


def read_image_folder(
    path: Path, *, image_size: int | None, stream: bool | None
) -> RawData:
    """Return the classes and files of an image folder; classes in order of names.

    Args:
        path: the folder that holds ``train`` and ``test`` (or ``val``, ``valid``).
            Beside ``test``, ``val`` or ``valid`` is the validation split.
        image_size: height and width to bring images to; None: see `agreed_shape`.
        stream: whether to leave images on disk; None: if they exceed `MEMORY_BUDGET`.
    """
    held_out = [name for name in TEST_NAMES if (path / name).is_dir()]
    if not held_out:
        raise MissingFileError(
            f"an image folder must have a test folder beside train, but {path} has "
            f"none of {', '.join(TEST_NAMES)}; make {path / 'test'}/CLASS/*"
        )
    names = ["train", *(held_out[:2] if held_out[0] == "test" else held_out[:1])]
    listed = {name: _listed(path / name) for name in names}
    train = listed["train"]
    for name in names[1:]:
        _refuse_different_classes(set(train), set(listed[name]), name)
    refuse_odd_classes(list(train), f"{path / 'train'}")
    files = {
        name: [f"{name}/{own}/{file}" for own, found in of.items() for file in found]
        for name, of in listed.items()
    }
    every = [file for found in files.values() for file in found]
    shape = agreed_shape(_sample(path, every), image_size)
    if stream is None:
        stream = len(every) * math.prod(shape) > MEMORY_BUDGET
    first, test, *rest = (
        FolderSource(path, files[name], _labels(listed[name]), shape, stream)
        for name in names
    )
    return RawData(
        name=path.resolve().name,
        classes=tuple(train),
        train=first,
        test=test,
        augmentation=standard(shape[0], shape[1]),
        validation=rest[0] if rest else None,
    )


class FolderSource(Source):
    """The image files of one official split."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Int64[Tensor, " images"],
        shape: tuple[int, int, int],
        stream: bool,
    ) -> None:
        self.root = root
        self.files = list(files)
        self.labels = labels
        self.shape = shape
        self.stream = stream

    def read(self, rows: Int64[Tensor, " rows"]) -> Split:
        """Return these files, decoded now or, if streamed, later."""
        paths = [self.files[row] for row in rows.tolist()]
        if self.stream:
            return StreamedSplit(self.root, paths, self.labels[rows], self.shape)

        def decode_one(index: int) -> np.ndarray:
            path = self.root / paths[index]
            return decode(path, str(path), self.shape)

        images = decode_all(len(paths), self.shape, decode_one)
        return TensorSplit(images, self.labels[rows])


def _listed(folder: Path) -> dict[str, list[str]]:
    """Return each class's image files, as sorted paths below the class's folder."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    classes = {name: sorted(_images(folder / name)) for name in sorted(names)}
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"every class folder must hold images, but {folder / name} holds none "
                f"({', '.join(SUFFIXES)}); fill or remove it"
            )
    return classes


def _images(folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        below = os.path.relpath(where, folder)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _refuse_different_classes(train: set[str], test: set[str], test_name: str) -> None:
    for only, here, there in (
        (sorted(train - test), "train", test_name),
        (sorted(test - train), test_name, "train"),
    ):
        if only:
            more = f" and {len(only) - 1} more" if len(only) > 1 else ""
            raise InputError(
                f"train and {test_name} must have the same classes, but {only[0]!r}"
                f"{more} of {here} is missing in {there}; add or remove its folder"
            )


def _labels(classes: dict[str, list[str]]) -> Int64[Tensor, " images"]:
    counts = torch.tensor([len(files) for files in classes.values()])
    return torch.arange(len(classes)).repeat_interleave(counts)


def _sample(root: Path, files: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for row in np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).round():
        path = root / files[int(row)]
        yield path, str(path)
