"""CIFAR-10 and CIFAR-100 as first published: pickles in a folder or a tarball.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. Pickles can execute code, so they
are read by an unpickler that knows nothing but numpy arrays.
"""

import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.raw import (
    ArraySource,
    RawData,
    as_labels,
    one_line,
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

_reconstruct = np.empty(0).__reduce__()[0]  # where it lives depends on numpy's version
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): str.encode,  # how Python 3 writes bytes in old protocols
}
"""Everything a CIFAR pickle may name."""


def is_cifar(path: Path) -> bool:
    """Tell whether `path` is a CIFAR folder, its parent, or a tarball."""
    return path.name.endswith(TAR_SUFFIXES) or _folder(path) is not None


def read_cifar(path: Path) -> RawData:
    """Return CIFAR-10 or CIFAR-100 (fine labels), whichever the files are."""
    if path.is_dir():
        folder = _folder(path) or path
        names = {file.name for file in folder.iterdir() if file.is_file()}
        files = {
            name: (folder / name).read_bytes()
            for name in names.intersection(FILES_10 + FILES_100)
        }
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
    try:
        with tarfile.open(path, "r|*") as tar:  # one pass, nothing is extracted
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in FILES_10 + FILES_100:
                    handle = tar.extractfile(member)
                    files[name] = handle.read() if handle else b""
    except Exception as error:  # tarfile, gzip and zlib raise their own
        raise InputError(
            f"{path} must be a whole tarball, but reading it failed "
            f"({one_line(error)}); download it again"
        ) from error
    return files


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


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that refuses every global but those of `ALLOWED`."""

    where: str = "the pickle"

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in ALLOWED:
            raise InputError(
                f"a CIFAR pickle must hold only numpy arrays, but {self.where} names "
                f"'{module_name}.{global_name}', which could execute code; do not use "
                "this file, download the data from its source"
            )
        return ALLOWED[module_name, global_name]


def _unpickled(content: bytes, where: str) -> dict[str, Any]:
    """Return the dict in a pickle, its keys as text; no code of its is executed."""
    reader = _ArraysOnly(io.BytesIO(content), encoding="bytes")
    reader.where = where
    try:
        value = reader.load()
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
            f"only {', '.join(meta) or 'nothing'}; download it again"
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
            f"{', '.join(value) or 'nothing'}; download it again"
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
