"""MNIST's idx files, and whatever is published in their form (Fashion-MNIST, ...).

Format: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit number, then the data.
"""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.guards import affordable, one_line
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.raw import (
    ArraySource,
    RawData,
    numbered_classes,
    refuse_foreign_labels,
    refuse_odd_classes,
)

UNSIGNED_BYTE = 8
STEMS = {
    "train images": "train-images{}idx3-ubyte",
    "train labels": "train-labels{}idx1-ubyte",
    "test images": "t10k-images{}idx3-ubyte",
    "test labels": "t10k-labels{}idx1-ubyte",
}


def is_mnist(path: Path) -> bool:
    """Tell whether `path` holds training images in an idx file."""
    return _file(path, "train images") is not None


def read_mnist(path: Path) -> RawData:
    """Return the grey images and labels of four idx files, gzipped or not."""
    parts: dict[str, Tensor] = {}
    for role, stem in STEMS.items():
        file = _file(path, role)
        if file is None:
            raise MissingFileError(
                f"idx data must have {role} in a file {stem.format('-')}[.gz], but "
                f"{path} has none; download it"
            )
        parts[role] = _read_idx(file, dimensions=3 if role.endswith("images") else 1)
    train, test = (_source(path, parts, half) for half in ("train", "test"))
    classes = numbered_classes(train.labels, f"the train split of {path}")
    refuse_odd_classes(classes, str(path))
    refuse_foreign_labels(test.labels, classes, f"the test split of {path}")
    if train.whole.shape != test.whole.shape:
        raise InputError(
            "train and test images must have one size, but those of "
            f"{path} are {train.whole.shape[1:]} and {test.whole.shape[1:]} (height, "
            "width); download them again"
        )
    name = path.resolve().name
    return RawData(name, classes, train, test, Augmentation(pad=2))


def _file(path: Path, role: str) -> Path | None:
    for separator in ("-", "."):
        for suffix in ("", ".gz"):
            file = path / (STEMS[role].format(separator) + suffix)
            if file.is_file():
                return file
    return None


def _source(path: Path, parts: dict[str, Tensor], half: str) -> ArraySource:
    images, labels = parts[f"{half} images"], parts[f"{half} labels"]
    if len(images) != len(labels) or len(labels) == 0:
        raise InputError(
            f"every image must have one label, but the {half} split of {path} has "
            f"{len(images)} images and {len(labels)} labels; download it again"
        )
    return ArraySource(images[:, None], labels.long())


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Return an idx file of unsigned bytes as a uint8 tensor."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            shape = _shape(handle.read(4 + 4 * dimensions), path, dimensions)
            size = math.prod(shape)
            if 0 < size <= affordable(path.stat().st_size):
                content = handle.read(size + 1)  # to the end, where gzip checks the sum
            else:
                content = b""
    except InputError:
        raise
    except Exception as error:  # gzip and zlib raise their own
        raise InputError(
            f"{path} must be a whole gzip file, but reading it failed "
            f"({one_line(error)}); download it again"
        ) from error
    if len(content) != size or size == 0:
        got = f"more than {size}" if len(content) > size else len(content)
        raise InputError(
            f"{path} must hold {' x '.join(map(str, shape))} bytes after its header, "
            f"at least one, but holds {got}; download it again"
        )
    data = np.frombuffer(content, np.uint8).reshape(shape)
    return torch.from_numpy(data.copy())


def _shape(header: bytes, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if len(header) < 4 + 4 * dimensions or header[:4] != magic:
        raise InputError(
            f"{path} must be an idx file of bytes in {dimensions} dimensions (first "
            f"bytes {magic.hex(' ')}), but begins with "
            f"{header[:4].hex(' ') or 'nothing'}; download it again"
        )
    return struct.unpack(f">{dimensions}I", header[4:])
