"""Random images in the files of CIFAR-10, for studies of time and memory."""

import pickle
from pathlib import Path

import numpy as np

NUMBERS = 3 * 32 * 32
"""Bytes of an image."""


def write_cifar(folder: Path, train: int, test: int) -> Path:
    """Write `train` and `test` random images into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)

    def write(name: str, count: int) -> None:
        content = {
            b"data": random.integers(0, 256, (count, NUMBERS), dtype=np.uint8),
            b"labels": [number % 10 for number in range(count)],
        }
        with (folder / name).open("wb") as handle:
            pickle.dump(content, handle)

    for number in range(5):
        share = train // 5 + (number < train % 5)
        write(f"data_batch_{number + 1}", share)
    write("test_batch", test)
    names = [f"class {number}".encode() for number in range(10)]
    with (folder / "batches.meta").open("wb") as handle:
        pickle.dump({b"label_names": names}, handle)
    return folder
