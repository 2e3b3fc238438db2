"""Parquet files in the Hugging Face layout, with embedded images."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.guards import (
    affordable,
    one_line,
    parse_json,
    refuse_irregular,
)
from metaensemble.data.augmentation import standard
from metaensemble.data.decode import agreed_shape, decode, decode_all
from metaensemble.data.raw import (
    RawData,
    Source,
    as_labels,
    numbered_classes,
    refuse_empty,
    refuse_foreign_labels,
    refuse_odd_classes,
)
from metaensemble.data.split import TensorSplit

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
TEST_PATTERNS = ("test*.parquet", "validation*.parquet", "val*.parquet")
"""Files of test images: the first that match. If those are ``test*``, the next that
match hold images for validation."""

ROWS_AT_ONCE = 64
"""Rows that are read before their size is looked at."""
SAMPLE = 1_000
"""Images, spread evenly, whose headers decide on shape and colour."""


def is_parquet_folder(path: Path) -> bool:
    """Tell whether `path`, or its ``data`` folder, holds ``train*.parquet``."""
    return bool(_files(path, "train*.parquet"))


def read_parquet_folder(path: Path, *, image_size: int | None) -> RawData:
    """Return the labels and still encoded images of a folder of parquet files."""
    held_out = [files for pattern in TEST_PATTERNS if (files := _files(path, pattern))]
    if not held_out:
        raise MissingFileError(
            f"test images must lie beside {path}'s train*.parquet, but nothing matches "
            f"{', '.join(TEST_PATTERNS)}; add such a file"
        )
    # What matches ``validation*`` matches ``val*``, too.
    apart = held_out[:2] if _files(path, TEST_PATTERNS[0]) else held_out[:1]
    parts = {
        f"the {name} split of {path}": [_read(file) for file in files]
        for name, files in zip(
            ("train", "test", "validation"),
            (_files(path, "train*.parquet"), *apart),
            strict=False,
        )
    }
    labels = {
        where: torch.cat([shard.labels for shard in shards])
        for where, shards in parts.items()
    }
    for where, own in labels.items():
        refuse_empty(own, where)
    train_labels = next(iter(labels.values()))
    shards = next(iter(parts.values()))
    classes = shards[0].classes or numbered_classes(train_labels, next(iter(labels)))
    refuse_odd_classes(classes, str(path))
    for where, own in labels.items():
        refuse_foreign_labels(own, classes, where)
    sample = itertools.chain(*(_sample(own) for own in parts.values()))
    shape = agreed_shape(sample, image_size)
    train, test, *rest = (
        ParquetSource(own, labels[where], shape) for where, own in parts.items()
    )
    return RawData(
        name=path.resolve().name,
        classes=classes,
        train=train,
        test=test,
        augmentation=standard(shape[0], shape[1]),
        validation=rest[0] if rest else None,
    )


@dataclass(frozen=True)
class Shard:
    """One file: its images, still encoded, its labels, and its class names if any."""

    path: Path
    images: pa.ChunkedArray
    labels: Tensor
    classes: tuple[str, ...] | None

    def image(self, row: int) -> tuple[bytes, str]:
        """Return an image file's content and a name for it."""
        name = f"the image in row {row} of {self.path}"
        content = self.images[row].as_py()
        if not content:
            raise InputError(
                f"images must be embedded in the parquet file, but {name} has no "
                "bytes; write the file again with the images inside"
            )
        return content, name


class ParquetSource(Source):
    """The encoded images of one official split, in memory, over several files."""

    def __init__(
        self,
        shards: Sequence[Shard],
        labels: Int64[Tensor, " images"],
        shape: tuple[int, int, int],
    ) -> None:
        self.shards = shards
        self.labels = labels
        self.shape = shape
        sizes = (len(shard.labels) for shard in shards)
        self._starts = list(itertools.accumulate(sizes, initial=0))

    def read(self, rows: Int64[Tensor, " rows"]) -> TensorSplit:
        """Return these rows, decoded."""
        wanted = rows.tolist()

        def decode_one(index: int) -> np.ndarray:
            shard = bisect.bisect_right(self._starts, wanted[index]) - 1
            row = wanted[index] - self._starts[shard]
            return decode(*self.shards[shard].image(row), self.shape)

        images = decode_all(len(wanted), self.shape, decode_one)
        return TensorSplit(images, self.labels[rows])


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern)) or sorted((path / "data").glob(pattern))


def _read(path: Path) -> Shard:
    refuse_irregular(path, "a parquet file")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image = _column(path, schema, IMAGE_COLUMNS)
            label = _column(path, schema, LABEL_COLUMNS)
            table = _table(file, [image, label], affordable(path.stat().st_size))
        return Shard(
            path,
            _image_bytes(path, table.column(image)),
            _labels(path, table.column(label)),
            _class_names(schema, label),
        )
    except InputError:
        raise
    except Exception as error:  # pyarrow raises a dozen types for broken files
        raise InputError(
            f"{path} must be a whole parquet file, but reading it failed "
            f"({one_line(error)}); copy or make it again"
        ) from error


def _table(file: pq.ParquetFile, columns: list[str], most: int) -> pa.Table:
    """Return columns; a few bytes of a file can stand for endless rows of them.

    Raises:
        ValueError: they take more than `most` bytes.
    """
    batches, size = [], 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        if size > most:
            raise ValueError(f"it unfolds to more than {most} bytes")
    if not batches:
        return file.schema_arrow.empty_table().select(columns)
    return pa.Table.from_batches(batches)


def _column(path: Path, schema: pa.Schema, names: Sequence[str]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise InputError(
        f"a parquet file must have a column named {' or '.join(names)}, but {path} has "
        f"only {', '.join(schema.names)}; rename the column"
    )


def _image_bytes(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pa.chunked_array(
            [chunk.field("bytes") for chunk in column.chunks],
            type=kind.field("bytes").type,
        )
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InputError(
            f"images must be bytes, or a struct with a field 'bytes', but {path} holds "
            f"{kind}; write the file again with encoded images"
        )
    return column


def _labels(path: Path, column: pa.ChunkedArray) -> Int64[Tensor, " images"]:
    if not pa.types.is_integer(column.type) or column.null_count:
        got = f"{column.null_count} nulls" if column.null_count else str(column.type)
        raise InputError(
            f"labels must be integers, but the label column of {path} holds {got}; "
            "number the classes 0 to K-1"
        )
    return as_labels(column.to_numpy().astype(np.int64), str(path))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the names in the schema's ``huggingface`` metadata, if it has them."""
    value = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", label, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    return tuple(map(str, value)) if isinstance(value, list) and value else None


def _sample(shards: Sequence[Shard]) -> Iterator[tuple[bytes, str]]:
    for shard in shards:
        count = len(shard.labels)
        chosen = min(count, max(1, SAMPLE // len(shards)))
        for row in np.linspace(0, count - 1, chosen).round():
            yield shard.image(int(row))
