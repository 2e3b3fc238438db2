"""Hostile files of CIFAR, whose batches are pickles, and of MNIST's idx."""

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, Named, Payload, entering
from samples import idx, tarball

CASES: list[Case] = []
case = entering(CASES)


@case("cifar folder", r"names '(posix|nt)\.system', which could execute code")
def code_in_a_batch(folder: Path) -> None:
    value = {"data": Payload(folder), "labels": [0, 1]}
    (folder / "cifar" / "data_batch_2").write_bytes(pickle.dumps(value, protocol=2))


@case("cifar tarball", r"names 'builtins\.eval', which could execute code")
def code_in_a_tarball(folder: Path) -> None:
    value = Named(eval, f"open('{folder}/executed', 'w')")
    retarred(folder, {"data_batch_1": pickle.dumps(value, protocol=4)})


def batch(folder: Path, value: object, protocol: int = 4) -> None:
    content = value if isinstance(value, bytes) else pickle.dumps(value, protocol)
    (folder / "cifar" / "data_batch_1").write_bytes(content)


WHOLE_PICKLE = "data_batch_1 must be a whole pickle"


@case("cifar folder", "no array type 'O8' is known")
def arrays_of_objects(folder: Path) -> None:
    objects = np.array([partial(print)], dtype=object)
    batch(folder, {"data": objects, "labels": [0, 1]})


@case("cifar folder", WHOLE_PICKLE)
def bytes_as_addresses(folder: Path) -> None:
    """A numpy type whose state makes of its bytes a pointer to an object."""
    head, tail = b"\x80\x02}(U\x04datac", b"U\x06labels](K\x00K\x01eu."
    kind = b"numpy\ndtype\n(U\x02V8K\x00K\x01tR"
    kind += b"(K\x03U\x01|NU\x01f\x85}U\x01fcnumpy\ndtype\n(U\x02O8K\x00K\x01tRK\x00"
    kind += b"\x86sK\x08K\x01K\x00tb"
    batch(folder, head + kind + tail)


@case("cifar folder", WHOLE_PICKLE)
def keys_that_take_for_ever_to_hash(folder: Path) -> None:
    """Tuples in one another, each twice the former: 2 ** 60 hashes."""
    twice = b"q\x00h\x00h\x00\x86" * 60
    batch(folder, b"\x80\x02)" + twice + b"q\x00}h\x00K\x01s.")


@case("cifar folder", "labels must be integers")
def labels_that_double(folder: Path) -> None:
    labels: list[Any] = [0, 1]
    for _ in range(60):
        labels = [labels, labels]
    batch(folder, {"data": np.zeros((2, 3072), np.uint8), "labels": labels})


@case("cifar folder", WHOLE_PICKLE)
def an_array_larger_than_its_bytes(folder: Path) -> None:
    content = pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=2)
    batch(folder, content.replace(b"M\x00\x0c", b"J\xff\xff\xff\x7f"))


@case("cifar folder", WHOLE_PICKLE)
def a_text_of_two_gigabytes(folder: Path) -> None:
    batch(folder, b"\x80\x02}T\xff\xff\xff\x7fdata")


@case("cifar folder", "must have at most 536870912 bytes")
def a_file_of_a_terabyte(folder: Path) -> None:
    with (folder / "cifar" / "data_batch_1").open("wb") as handle:
        handle.truncate(2**40)


@case("cifar folder", "lacks data_batch_1")
def a_pipe_named_batch(folder: Path) -> None:
    (folder / "cifar" / "data_batch_1").unlink()
    os.mkfifo(folder / "cifar" / "data_batch_1")


@case("cifar tarball", "a tarball must be a file, but .* is no regular file")
def a_pipe_named_tarball(folder: Path) -> None:
    (folder / "cifar.tar.gz").unlink()
    os.mkfifo(folder / "cifar.tar.gz")


def retarred(folder: Path, more: Mapping[str, bytes | tarfile.TarInfo]) -> None:
    """Write the tarball with files or entries before its own."""
    own = tarfile.open(fileobj=io.BytesIO(tarball(0)))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, content in more.items():
            entry = content if isinstance(content, tarfile.TarInfo) else None
            if isinstance(content, bytes):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            elif entry is not None:
                tar.addfile(entry)
        for entry in own:
            if entry.name.rsplit("/", 1)[-1] not in more:
                tar.addfile(entry, own.extractfile(entry))


@case("cifar tarball", "read")
def paths_that_lead_out(folder: Path) -> None:
    out = {f"{'../' * 9}tmp/executed": b"x", f"{folder}/executed": b"x"}
    retarred(folder, out)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@case("cifar tarball", "lacks data_batch_1")
def links_to_other_files(folder: Path) -> None:
    retarred(folder, {"data_batch_1": link("data_batch_1", "/etc/passwd", b"2")})


@case("cifar tarball", "lacks data_batch_1")
def hard_links_and_devices(folder: Path) -> None:
    entries = {
        "data_batch_1": link("data_batch_1", "/etc/passwd", b"1"),
        "zero": link("zero", "", tarfile.CHRTYPE),
    }
    retarred(folder, dict(entries))


@case("cifar tarball", "unfolds to more than a data set of its size")
def a_bomb_in_a_tarball(folder: Path) -> None:
    bomb(folder, lambda size: link_of_size("zeros", size), 2**27)


@case("cifar tarball", "unfolds to more than a data set of its size")
def a_bomb_in_a_header(folder: Path) -> None:
    bomb(folder, lambda size: link_of_size("long name", size, b"L"), 2**27)


def link_of_size(name: str, size: int, kind: bytes = b"0") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def bomb(folder: Path, head: Callable[[int], bytes], size: int) -> None:
    with gzip.open(folder / "cifar.tar.gz", "wb", 1) as handle:
        handle.write(head(size))
        for _ in range(size // 2**20):
            handle.write(bytes(2**20))


@case("idx, gzipped", r"must hold 60000 x 4096 x 4096 bytes")
def a_bomb_in_an_idx_file(folder: Path) -> None:
    magic = bytes((0, 0, 8, 3, 0, 0, 0xEA, 0x60, 0, 0, 16, 0, 0, 0, 16, 0))
    with gzip.open(folder / "mnist" / "train-images-idx3-ubyte.gz", "wb", 1) as file:
        file.write(magic)
        for _ in range(64):
            file.write(bytes(2**20))


@case("idx, gzipped", r"but holds more than 120")
def more_than_the_header_says(folder: Path) -> None:
    content = idx(np.zeros((6, 5, 4), np.uint8)) + bytes(2**26)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content, 1))


@case("idx", r"must hold 4294967295 x 4294967295 x 4294967295 bytes")
def sizes_that_overflow(folder: Path) -> None:
    path = folder / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12 + bytes(64))


@case("idx", "but begins with 00 00 0d 03")
def numbers_that_are_floats(folder: Path) -> None:
    path = folder / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(bytes((0, 0, 13, 3)) + path.read_bytes()[4:])


@case("idx", "but begins with nothing")
def an_idx_file_without_bytes(folder: Path) -> None:
    (folder / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"")
