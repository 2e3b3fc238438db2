"""CIFAR-10 and CIFAR-100 as first published: pickles in a folder or a tarball.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. Pickles can execute code, so they
are read by `read_pickle`, which knows nothing but containers and numpy arrays.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.guards import affordable, one_line, refuse_irregular
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.pickled import read_pickle
from metaensemble.data.raw import (
    ArraySource,
    RawData,
    as_labels,
    refuse_empty,
    refuse_foreign_labels,
    refuse_odd_classes,
)

TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))
FILES_10 = (*TRAIN_10, "test_batch", "batches.meta")
FILES_100 = ("train", "test", "meta")
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
SHAPE = (3, 32, 32)
MOST_BYTES = 2**29
"""Bytes of all files together; CIFAR's have 186 million."""


def is_cifar(path: Path) -> bool:
    """Tell whether `path` is a CIFAR folder, its parent, or a tarball."""
    return path.name.endswith(TAR_SUFFIXES) or _folder(path) is not None


def read_cifar(path: Path) -> RawData:
    """Return CIFAR-10 or CIFAR-100 (fine labels), whichever the files are."""
    if path.is_dir():
        folder = _folder(path) or path
        names = {file.name for file in folder.iterdir() if file.is_file()}
        files: dict[str, bytes] = {}
        for name in sorted(names.intersection(FILES_10 + FILES_100)):
            size = (folder / name).stat().st_size
            if size > MOST_BYTES:
                raise InputError(
                    f"a CIFAR file must have at most {MOST_BYTES} bytes, but "
                    f"{folder / name} has {size}; download it again"
                )
            files[name] = (folder / name).read_bytes()
    else:
        files = _members(path)
    if "data_batch_1" in files or "batches.meta" in files:
        return _assembled(
            "cifar10", path, files, TRAIN_10, ("test_batch",), "batches.meta"
        )
    return _assembled("cifar100", path, files, ("train",), ("test",), "meta")


def _folder(path: Path) -> Path | None:
    for folder in (path, *(path / name for name in FOLDERS)):
        if (folder / "data_batch_1").is_file() or (folder / "batches.meta").is_file():
            return folder
        if (folder / "meta").is_file() and (folder / "train").is_file():
            return folder
    return None


def _members(path: Path) -> dict[str, bytes]:
    """Return the contents of a tarball's CIFAR files by bare name, in memory."""
    files: dict[str, bytes] = {}
    refuse_irregular(path, "a tarball")
    try:
        with path.open("rb") as handle:
            packed = handle.read(2) == b"\x1f\x8b"
        most = min(MOST_BYTES, affordable(path.stat().st_size))
        with (
            gzip.open(path) if packed else path.open("rb") as plain,
            # one pass, nothing is extracted
            tarfile.open(fileobj=_AtMost(plain, most), mode="r|") as tar,
        ):
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if not (member.isfile() and name in FILES_10 + FILES_100):
                    continue
                if member.size > most:  # the holes of a sparse file lie in no tarball
                    raise ValueError(f"{name} in it has {member.size} bytes")
                content = tar.extractfile(member)
                files[name] = content.read() if content else b""
    except Exception as error:  # tarfile, gzip and zlib raise their own
        raise InputError(
            f"{path} must be a whole tarball, but reading it failed "
            f"({one_line(error)}); download it again"
        ) from error
    return files


class _AtMost(io.RawIOBase):
    """A stream that fails when more than so many bytes are asked of it."""

    def __init__(self, stream: io.BufferedIOBase, most: int) -> None:
        self.stream = stream
        self.left = most

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, fewer at the end."""
        if not 0 <= size <= self.left:
            raise ValueError("it unfolds to more than a data set of its size")
        content = self.stream.read(size)
        self.left -= len(content)
        return content


def _assembled(
    name: str,
    path: Path,
    files: Mapping[str, bytes],
    train_names: tuple[str, ...],
    test_names: tuple[str, ...],
    meta_name: str,
) -> RawData:
    missing = [n for n in (*train_names, *test_names, meta_name) if n not in files]
    if missing:
        raise MissingFileError(
            f"{name} must have the files {', '.join((*train_names, *test_names))} and "
            f"{meta_name}, but {path} lacks {', '.join(missing)}; download it again"
        )
    meta = _unpickled(files[meta_name], f"{path}: {meta_name}")
    classes = _class_names(meta, f"{path}: {meta_name}")
    refuse_odd_classes(classes, str(path))
    sources = []
    for names in (train_names, test_names):
        parts = [_batch(files[n], f"{path}: {n}", classes) for n in names]
        images, labels = zip(*parts, strict=True)
        sources.append(ArraySource(torch.cat(images), torch.cat(labels)))
    train, test = sources
    return RawData(name, classes, train, test, Augmentation(pad=4, flip=True))


def _unpickled(content: bytes, where: str) -> dict[str, Any]:
    """Return the dict in a pickle, its keys as text; no code of its is executed."""
    try:
        value = read_pickle(content, where)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"{where} must be a whole pickle, but reading it failed "
            f"({one_line(error)}); download it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where} must hold a dict, but holds a {type(value).__name__}; "
            "download it again"
        )
    return {_text(key): item for key, item in value.items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _class_names(meta: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = meta.get("label_names", meta.get("fine_label_names"))
    if not isinstance(names, list):
        raise InputError(
            f"{where} must have the list label_names or fine_label_names, but has "
            f"only {one_line(', '.join(meta) or 'nothing')}; download it again"
        )
    if not set(map(type, names)) <= {bytes, str}:
        raise InputError(
            f"class names must be texts, but those of {where} are not all; "
            "download it again"
        )
    return tuple(map(_text, names))


def _batch(
    content: bytes, where: str, classes: tuple[str, ...]
) -> tuple[UInt8[Tensor, "images channels height width"], Int64[Tensor, " images"]]:
    value = _unpickled(content, where)
    data = value.get("data")
    labels = value.get("labels", value.get("fine_labels"))
    if data is None or labels is None:
        raise InputError(
            f"{where} must have data and labels (or fine_labels), but has only "
            f"{one_line(', '.join(value) or 'nothing')}; download it again"
        )
    size = int(np.prod(SHAPE))
    if not isinstance(data, np.ndarray) or (data.dtype, data.shape[1:]) != (
        np.dtype(np.uint8),
        (size,),
    ):
        got = getattr(data, "dtype", type(data).__name__), getattr(data, "shape", ())
        raise InputError(
            f"the data of {where} must be bytes of shape (n, {size}), but is {got[0]} "
            f"of shape {got[1]}; download it again"
        )
    refuse_empty(data, where)
    tensor = as_labels(labels, where)
    if len(tensor) != len(data):
        raise InputError(
            f"every image must have one label, but {where} has {len(data)} images and "
            f"{len(tensor)} labels; download it again"
        )
    refuse_foreign_labels(tensor, classes, where)
    return torch.from_numpy(data.copy()).view(-1, *SHAPE), tensor
