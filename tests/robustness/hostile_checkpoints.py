"""Hostile members, checkpoints and predictors."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from case import Case, Payload, entering
from packing import safetensors_header
from safetensors.torch import save_file
from samples import network

from metaensemble.core.states import load_state, save_state

CASES: list[Case] = []
case = entering(CASES)

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
