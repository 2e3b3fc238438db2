"""Hostile images in folders and in parquet files."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from case import Case, entering
from PIL import Image

CASES: list[Case] = []
case = entering(CASES)


def first_image(folder: Path) -> Path:
    return next((folder / "pictures" / "train" / "ant").glob("0.*"))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG that says it has this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        sum_ = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + sum_

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = chunk(b"IHDR", size + bytes((8, 0, 0, 0, 0)))
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@case("png folder", "must have at most 67108864 pixels")
def a_bomb_of_pixels(folder: Path) -> None:
    first_image(folder).write_bytes(png(12_000, 12_000, bytes(2**20)))


@case("png folder", "is not .*repair or remove it")
def a_size_beyond_all_measure(folder: Path) -> None:
    first_image(folder).write_bytes(png(2**31 - 1, 2**31 - 1, b""))


@case("png folder", "is not .*repair or remove it")
def postscript_named_png(folder: Path) -> None:
    code = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({folder}/executed) "
    first_image(folder).write_text(code + "(w) file closefile showpage\n")


@case("png folder", "is not .*repair or remove it")
def an_image_without_bytes(folder: Path) -> None:
    first_image(folder).write_bytes(b"")


@case("png folder", "an image must be a file, but .* is no regular file")
def a_pipe_among_images(folder: Path) -> None:
    first_image(folder).unlink()
    os.mkfifo(folder / "pictures" / "train" / "ant" / "0.png")


@case("png folder", "is not .*repair or remove it")
def a_link_to_nothing_among_images(folder: Path) -> None:
    first_image(folder).unlink()
    (folder / "pictures" / "train" / "ant" / "0.png").symlink_to(folder / "nothing")


@case("png folder", "8 bits per channel|is not .*repair")
def an_image_of_floats(folder: Path) -> None:
    tiff = Image.fromarray(np.full((9, 7), np.nan, np.float32))
    tiff.save(first_image(folder), format="TIFF")


@case("png folder", "class names must be Unicode, but .* names a class")
def a_class_that_is_no_text(folder: Path) -> None:
    for split in ("train", "test"):
        old = os.fsencode(folder / "pictures" / split / "ant")
        os.rename(old, os.path.dirname(old) + b"/\xff\xfe")


@case("png folder", "ant holds none")
def a_file_where_a_folder_belongs(folder: Path) -> None:
    for path in (folder / "pictures" / "train" / "ant").iterdir():
        path.unlink()
        path.with_suffix(".png.d").mkdir()


def shard(folder: Path, table: pa.Table, **options: Any) -> None:
    pq.write_table(table, folder / "table" / "train.parquet", **options)


@case("parquet", "unfolds to more than")
def one_image_a_million_times(folder: Path) -> None:
    picture = png(9, 7, bytes(70)) + bytes(200_000)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 2**16, pa.int32()), [picture])
    labels = pa.array([0, 1] * 2**15)
    shard(folder, pa.table({"img": cells, "label": labels}), store_schema=False)


@case("parquet", "must be a whole parquet file")
def more_rows_than_there_are(folder: Path) -> None:
    path = folder / "table" / "train.parquet"
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x16\x08", b"\x7f" * 4)[:-9])


@case("parquet", "has no bytes")
def images_that_are_missing(folder: Path) -> None:
    cells = pa.array([None] * 4, pa.binary())
    shard(folder, pa.table({"img": cells, "label": pa.array([0, 1, 0, 1])}))


@case("parquet", "labels must be integers")
def labels_that_are_not_numbers(folder: Path) -> None:
    cells = pa.array([png(9, 7, bytes(70))] * 2, pa.binary())
    labels = pa.array([float("nan"), float("inf")])
    shard(folder, pa.table({"img": cells, "label": labels}))


@case("parquet", "must be a file, but .* is no regular file")
def a_pipe_named_parquet(folder: Path) -> None:
    (folder / "table" / "train.parquet").unlink()
    os.mkfifo(folder / "table" / "train.parquet")


@case("parquet", "must be a file, but .* is a folder")
def a_folder_named_parquet(folder: Path) -> None:
    (folder / "table" / "train.parquet").unlink()
    (folder / "table" / "train.parquet").mkdir()
