import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """Random uint8 images (n, c, h, w)."""

    def make(count: int, channels: int, height: int, width: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shape = (count, channels, height, width)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return make


def to_pil(image: Tensor) -> Image.Image:
    """An image (c, h, w) as PIL has it."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


@pytest.fixture
def png() -> Callable[[Tensor], bytes]:
    """The content of a PNG file of an image (c, h, w)."""

    def encode(image: Tensor) -> bytes:
        buffer = io.BytesIO()
        to_pil(image).save(buffer, format="PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write {"train": {"cat": images}, ...} as PNG files; returns the root."""

    def write(splits: dict[str, dict[str, Tensor]], root: Path | None = None) -> Path:
        root = root or tmp_path / "pictures"
        for split, classes in splits.items():
            for name, images in classes.items():
                (root / split / name).mkdir(parents=True)
                for number, image in enumerate(images):
                    to_pil(image).save(root / split / name / f"{number:03}.png")
        return root

    return write


@pytest.fixture
def parquet_file(png: Callable[[Tensor], bytes]) -> Callable[..., Path]:
    """Write images and labels as one parquet file in the Hugging Face layout."""

    def write(
        path: Path,
        images: Tensor,
        labels: list[int],
        names: list[str] | None = None,
        image_column: str = "img",
        label_column: str = "label",
        raw: bool = False,
    ) -> Path:
        cells = [png(i) if raw else {"bytes": png(i), "path": None} for i in images]
        binary = pa.binary()
        kind = binary if raw else pa.struct({"bytes": binary, "path": pa.string()})
        table = pa.table(
            {
                image_column: pa.array(cells, kind),
                label_column: pa.array(labels) if labels else pa.array([], pa.int64()),
            }
        )
        if names is not None:
            features = {label_column: {"names": names, "_type": "ClassLabel"}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def cifar_files() -> Callable[..., dict[str, bytes]]:
    """The pickles of a CIFAR-10 or CIFAR-100 folder with 2 or 3 classes."""

    def make(images: Tensor, labels: list[int], kind: int = 10) -> dict[str, bytes]:
        def batch(rows: slice) -> bytes:
            key = b"labels" if kind == 10 else b"fine_labels"
            data = images[rows].flatten(1).numpy()
            return pickle.dumps({b"data": data, key: labels[rows]}, protocol=2)

        if kind == 100:
            meta = {b"fine_label_names": [b"apple", b"bear"]}
            return {
                "train": batch(slice(0, 10)),
                "test": batch(slice(10, 12)),
                "meta": pickle.dumps(meta, protocol=2),
            }
        files = {
            f"data_batch_{k + 1}": batch(slice(2 * k, 2 * k + 2)) for k in range(5)
        }
        files["test_batch"] = batch(slice(10, 12))
        meta = {b"label_names": [b"airplane", b"automobile"]}
        files["batches.meta"] = pickle.dumps(meta, protocol=2)
        return files

    return make


@pytest.fixture
def idx() -> Callable[[Tensor], bytes]:
    """The content of an idx file of a uint8 tensor."""

    def encode(values: Tensor) -> bytes:
        magic = bytes((0, 0, 8, values.ndim))
        shape = struct.pack(f">{values.ndim}I", *values.shape)
        return magic + shape + values.to(torch.uint8).numpy().astype(np.uint8).tobytes()

    return encode
