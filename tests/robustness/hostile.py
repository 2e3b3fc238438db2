"""Hand-made hostile files: what a reader must refuse, and with which words."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from packing import safetensors_header
from PIL import Image
from safetensors.torch import save_file
from samples import SAMPLES, idx, network, tarball

from metaensemble.core.states import load_state, save_state


@dataclass(frozen=True)
class Case:
    """A hostile file."""

    name: str
    reader: str
    make: Callable[[Path], None]
    """Puts it into an empty folder."""
    message: str
    """A pattern of the error; ``read`` where it may be read."""


CASES: list[Case] = []


def case(
    reader: str, message: str, name: str = ""
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Enter a function that spoils the reader's good files as a case."""

    def enter(spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def make(folder: Path) -> None:
            SAMPLES[reader].write(folder, 0)
            spoil(folder)

        title = name or spoil.__name__.strip("_").replace("_", " ")
        CASES.append(Case(f"{reader}: {title}", reader, make, message))
        return spoil

    return enter


class Payload:
    """Whoever unpickles it as Python does, runs a command."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / 'executed'}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Named:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


# --- checkpoints

CODE = "loads without executing code"


@case("pickled state dict", CODE)
def code_beside_tensors(folder: Path) -> None:
    torch.save({"w": torch.ones(1), "x": Payload(folder)}, folder / "new.pt")


@case("legacy state dict", CODE)
def code_in_the_old_format(folder: Path) -> None:
    path = folder / "old.pth"
    torch.save({"w": Payload(folder)}, path, _use_new_zipfile_serialization=False)


@case("legacy state dict", CODE)
def a_bare_pickle_with_code(folder: Path) -> None:
    (folder / "old.pth").write_bytes(pickle.dumps(Payload(folder)))


@case("checkpoint", "must be whole to resume")
def code_in_a_checkpoint(folder: Path) -> None:
    torch.save({"step": Payload(folder)}, folder / "a.ckpt")


@case("member", "whole safetensors file")
def a_pickle_named_safetensors(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(pickle.dumps(Payload(folder)))


def record(folder: Path, **changes: Any) -> None:
    path = folder / "a.safetensors"
    state, metadata = load_state(path)
    assert metadata is not None
    save_state(path, state, {**metadata, **changes})


@case("member", "code named by a file is not run unless you name it")
def code_by_its_name(folder: Path) -> None:
    record(folder, architecture="os:system")


@case("member", "must be a member whose network can be built|of shape")
def a_network_of_petabytes(folder: Path) -> None:
    record(folder, architecture="mlp,width=65536,depth=64")


@case("member", "must be a member whose network can be built|must be known")
def images_beyond_all_measure(folder: Path) -> None:
    record(folder, input_shape=[2**62, 2**62, 2**62])


@case("member", "branches must be a whole number")
def a_billion_branches(folder: Path) -> None:
    record(folder, architecture="mlp,branches=1000000000")


@case("member", "read")
def a_name_that_is_no_text(folder: Path) -> None:
    record(folder, classes=["\ud800", "b", "c"])


@case("member", "of type torch.int64 where it needs torch.float32")
def weights_that_are_whole_numbers(folder: Path) -> None:
    path = folder / "a.safetensors"
    state, metadata = load_state(path)
    save_state(path, {n: t.long() for n, t in state.items()}, metadata or {})


@case("member", "NaN or infinity")
def weights_that_are_not_finite(folder: Path) -> None:
    path = folder / "a.safetensors"
    state, metadata = load_state(path)
    state["fc.bias"] = torch.tensor([1.0, float("inf"), 0.0])
    save_state(path, state, metadata or {})


def header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "a.safetensors"
    inner, close = safetensors_header(path.read_bytes())
    value = json.loads(inner)
    change(value)
    path.write_bytes(close(json.dumps(value).encode()))


WHOLE = "must be a whole safetensors file"


@case("bare safetensors", WHOLE)
def offsets_that_overlap(folder: Path) -> None:
    header(folder, lambda h: h["fc.bias"].update(data_offsets=[0, 12]))


@case("bare safetensors", WHOLE)
def offsets_beyond_the_end(folder: Path) -> None:
    header(folder, lambda h: h["fc.bias"].update(data_offsets=[2**40, 2**40 + 12]))


@case("bare safetensors", WHOLE)
def a_shape_that_overflows(folder: Path) -> None:
    header(folder, lambda h: h["fc.bias"].update(shape=[2**33, 2**33, 2**33]))


@case("bare safetensors", WHOLE)
def an_unknown_type(folder: Path) -> None:
    header(folder, lambda h: h["fc.bias"].update(dtype="O"))


@case("bare safetensors", WHOLE)
def a_huge_header(folder: Path) -> None:
    path = folder / "a.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])


@case("member", WHOLE)
def metadata_nested_100000_deep(folder: Path) -> None:
    tensors = network(0).state_dict()
    save_file(tensors, folder / "a.safetensors", {"metaensemble": "[" * 100_000})


@case("member", "has the key 'classes' twice")
def a_key_twice(folder: Path) -> None:
    text = '{"classes": ["a"], "classes": ["b"]}'
    save_file(network(0).state_dict(), folder / "a.safetensors", {"metaensemble": text})


@case("bare safetensors", "of a type that can be computed with|whole safetensors")
def weights_of_four_bits(folder: Path) -> None:
    four = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"w": four}, folder / "a.safetensors")


@case("bare safetensors", "read")
def weights_of_eight_bits(folder: Path) -> None:
    save_file({"w": torch.ones(4).to(torch.float8_e4m3fn)}, folder / "a.safetensors")


REAL = "must be dense and lie in their file"


def pickled(name: str, value: object) -> None:
    def spoil(folder: Path) -> None:
        torch.save(value, folder / "new.pt")

    case("pickled state dict", REAL, name)(spoil)


pickled("a number spread over a terabyte", {"w": torch.zeros(1).expand(10**12)})
pickled("a tensor on no device", {"w": torch.empty(10**9, device="meta")})
pickled("a sparse tensor", {"w": torch.zeros(3).to_sparse()})


@case("pickled state dict", "holds a .* of other things")
def names_that_are_numbers(folder: Path) -> None:
    torch.save({1: torch.ones(1)}, folder / "new.pt")


@case("pickled state dict", "is a zip file that unfolds to")
def a_zip_bomb(folder: Path) -> None:
    source = zipfile.ZipFile(folder / "new.pt")
    entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(folder / "new.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            packed = content + bytes(2**26) if name.endswith("data.pkl") else content
            archive.writestr(name, packed)


@case("pickled state dict", CODE)
def a_storage_that_is_not_there(folder: Path) -> None:
    path = folder / "new.pt"
    with zipfile.ZipFile(path) as source:
        entries = {n: source.read(n) for n in source.namelist() if "/data/" not in n}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@case("predictor", "does not fit it")
def a_generator_of_terabytes(folder: Path) -> None:
    change_predictor(folder, width=2**20, heads=1, expansion=1e6)


@case("predictor", "does not fit it")
def a_generator_of_a_billion_blocks(folder: Path) -> None:
    change_predictor(folder, depth=10**9)


@case("predictor", "does not fit it")
def tokens_outside_of_their_tensor(folder: Path) -> None:
    path = folder / "wf.safetensors"
    state, metadata = load_state(path)
    assert metadata is not None
    metadata["spec"]["layers"][0]["parts"][0]["first_row"] = 10**6
    save_state(path, state, metadata)


def change_predictor(folder: Path, **config: Any) -> None:
    path = folder / "wf.safetensors"
    state, metadata = load_state(path)
    assert metadata is not None
    metadata["config"].update(config)
    save_state(path, state, metadata)


# --- images


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


# --- parquet


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


# --- CIFAR


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
    from functools import partial

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


# --- idx


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


# --- texts


def text_case(reader: str, name: str, text: str | bytes, message: str) -> None:
    file = {"yaml": "config.yaml", "permutation spec": "spec.json"}
    content = text if isinstance(text, bytes) else text.encode()

    def spoil(folder: Path) -> None:
        (folder / file.get(reader, "report.json")).write_bytes(content)

    case(reader, message, name)(spoil)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n"
for before, after in zip("abcdefghi", "bcdefghij", strict=True):
    LAUGHS += f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
MERGES = "a: &a {x: 1}\n"
for before, after in zip("abcdefghi", "bcdefghij", strict=True):
    MERGES += f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"

NO_YAML = "must be YAML, but is not"
text_case("yaml", "a billion laughs", LAUGHS, "line 2 has an alias")
text_case("yaml", "merged billions", MERGES, "line 2 has an alias")
text_case("yaml", "deep nesting", "data: " + "[" * 100_000, "nested too deeply")
text_case("yaml", "a key twice", "seed: 1\nseed: 2\n", "has the key 'seed' twice")
text_case("yaml", "no text", b"data: \xff\xfe", NO_YAML)
text_case("yaml", "nothing", "", "must map options to values, but holds None")
text_case("yaml", "a date that is none", "data: 2001-99-99", NO_YAML)
text_case("yaml", "a long text", "x" * 2**21, "longer than 1048576 characters")
text_case("yaml", "a number that is none", "seed: !!int ''", NO_YAML)
text_case("yaml", "too many digits", "seed: " + "9" * 9999, NO_YAML)
text_case("yaml", "a list as a key", "? [a]\n: b", NO_YAML)
text_case("yaml", "infinity", "limit_train: .inf", "limit_train is wrong")
text_case("yaml", "a long key", "x" * 900 + ": 1", "must be an option")
RUN = "!!python/object/apply:os.system ['touch executed']"
text_case("yaml", "code", f"data: {RUN}", NO_YAML)
text_case("yaml", "code as a name", "data: !!python/name:os.system ''", NO_YAML)

DEEP = '{"a":' * 100_000
text_case("report", "deep nesting", DEEP, "must be JSON, but .* nested too deeply")
text_case("report", "a list nested", "[" * 900 + "]" * 900, "nested too deeply")
text_case("report", "a key twice", '{"schema": 1, "schema": 1}', "'schema' twice")
text_case("report", "no object", '"schema"', "has schema None")
text_case("report", "a long schema", '{"schema": "%s"}' % ("x" * 9999), "of schema 1")
text_case("report", "no text", b"\xff\xfe{", "must be JSON")
text_case("report", "a number too long", '{"schema": %s}' % ("9" * 9999), "be JSON")

SPEC = "must be a permutation spec"
BIG = {"name": "hidden.0", "size": 10**12, "axes": []}
COVERED = [{"tensor": "hidden.0.weight", "dim": 0, "count": 10**12}]
text_case("permutation spec", "deep nesting", "[" * 100_000, "nested too deeply")
text_case("permutation spec", "a key twice", '{"groups":[],"groups":[]}', "twice")
text_case("permutation spec", "no text", b"\xff", SPEC)
text_case(
    "permutation spec",
    "channels without axes",
    json.dumps({"groups": [BIG]}),
    "must be in some axis, but 'hidden.0' in .* has 1000000000000 channels",
)
text_case(
    "permutation spec",
    "channels that the network has not",
    json.dumps({"groups": [BIG | {"axes": COVERED}]}),
    "must suit the network: .* needs at least 1000000000000 entries",
)

# --- what is no file

for reader, path in (
    ("member", "a.safetensors"),
    ("pickled state dict", "new.pt"),
    ("report", "report.json"),
):

    def piped(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    def foldered(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        (folder / path).mkdir()

    def dangling(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        (folder / path).symlink_to(folder / "nothing")

    def emptied(folder: Path, path: str = path) -> None:
        (folder / path).write_bytes(b"")

    case(reader, "must be a file, but .* is no regular file", "a pipe")(piped)
    case(reader, "must be a file, but .* is a folder", "a folder")(foldered)
    case(reader, "does not exist", "a link to nothing")(dangling)
    case(reader, "must be", "no bytes")(emptied)
