import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaensemble.core import states as states_module
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.states import (
    NESTS,
    LazyState,
    hash_state,
    load_state,
    refuse_different,
    refuse_not_finite,
    save_state,
)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {
        "layer.weight": torch.arange(6.0).reshape(2, 3),
        "layer.bias": torch.tensor([-0.0, 1e-40], dtype=torch.float64),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }


def test_safetensors_round_trip_bit_for_bit(tmp_path: Path, state: dict[str, Tensor]):
    path = tmp_path / "a.safetensors"
    save_state(path, state, {"classes": ["a", "b"]})
    loaded, metadata = load_state(path)
    assert hash_state(loaded) == hash_state(state)
    assert metadata == {"classes": ["a", "b"]}


def test_the_bytes_of_a_file_depend_on_its_content_alone(
    tmp_path: Path, state: dict[str, Tensor]
):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_state(first, state, {"x": 1, "y": 2})
    save_state(second, dict(reversed(state.items())), {"y": 2, "x": 1})
    assert first.read_bytes() == second.read_bytes()


def test_shared_and_strided_tensors_are_written_apart(tmp_path: Path):
    tied = torch.randn(3, 2)
    path = tmp_path / "a.safetensors"
    save_state(path, {"a": tied, "b": tied, "c": tied.T}, {})
    loaded, _ = load_state(path)
    assert torch.equal(loaded["b"], tied)
    assert torch.equal(loaded["c"], tied.T)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, state: dict[str, Tensor]):
    path = tmp_path / "a.safetensors"
    save_state(path, state, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_state(path, state, {"not JSON": object()})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_bare_safetensors_have_no_metadata(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"format": "pt"})
    loaded, metadata = load_state(path)
    assert metadata is None
    assert loaded["w"].tolist() == [1, 1]


@pytest.mark.parametrize("wrap", [None, *NESTS])
def test_pickled_state_dicts_load_bare_or_nested(tmp_path: Path, wrap: str | None):
    path = tmp_path / "a.pt"
    state = nn.Linear(2, 3).state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    loaded, metadata = load_state(path)
    assert metadata is None
    assert hash_state(loaded) == hash_state(state)


def test_the_prefix_of_data_parallel_wrappers_is_taken_off(tmp_path: Path):
    path = tmp_path / "a.pth"
    wrapped = nn.Sequential()
    wrapped.add_module("module", nn.Linear(2, 3))
    torch.save({"state_dict": wrapped.state_dict()}, path)
    assert list(load_state(path)[0]) == ["weight", "bias"]


@pytest.mark.parametrize(
    "form", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_prefixes_of_compiled_networks_are_taken_off(tmp_path: Path, form: str):
    path = tmp_path / "a.pt"
    state = nn.Linear(2, 3).state_dict()
    torch.save({form + name: tensor for name, tensor in state.items()}, path)
    assert list(load_state(path)[0]) == list(LazyState(path)) == ["weight", "bias"]


def test_a_layer_that_is_called_module_keeps_its_name(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save({"module.weight": torch.ones(1), "head.weight": torch.ones(1)}, path)
    assert list(load_state(path)[0]) == ["module.weight", "head.weight"]


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("how", ["torch", "pickle", "nested"])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, how: str):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    elif how == "torch":
        torch.save(Bomb(trace), path)
    else:
        torch.save({"state_dict": {"w": torch.ones(1)}, "args": Bomb(trace)}, path)
    message = r"must be a state dict that loads without executing code .* save it again"
    with pytest.raises(InputError, match=message):
        load_state(path)
    assert not trace.exists()


def test_a_network_saved_whole_is_told_what_to_save(tmp_path: Path):
    torch.save(nn.Linear(2, 3), tmp_path / "a.pt")
    message = (
        r"^.*a\.pt must be a state dict that loads without executing code .* but it "
        r"holds objects of torch\.nn\.modules\.linear\.Linear, not only tensors; "
        r"where you trained it, save it again with torch\.save\(model\.state_dict"
    )
    with pytest.raises(InputError, match=message):
        load_state(tmp_path / "a.pt")


def test_a_missing_file(tmp_path: Path):
    message = r"but .*a.pt does not exist; make members with: metaensemble teach"
    with pytest.raises(MissingFileError, match=message):
        load_state(tmp_path / "a.pt")


def test_a_folder_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(InputError, match=r"must be a file, but .* is a folder"):
        load_state(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 60, -1])
def test_truncated_safetensors(tmp_path: Path, state: dict[str, Tensor], left: int):
    path = tmp_path / "a.safetensors"
    save_state(path, state, {})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"must be a whole safetensors file.*again"):
        load_state(path)


@pytest.mark.parametrize("left", [0, 4, 60, -100])
def test_truncated_pickles(tmp_path: Path, state: dict[str, Tensor], left: int):
    path = tmp_path / "a.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match="must be a state dict that loads"):
        load_state(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_empty_state_dict(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save({}, path)
    else:
        save_file({}, path)
    with pytest.raises(InputError, match=r"must hold tensors, but .* holds none"):
        load_state(path)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, torch.ones(2), {1: 2}])
def test_what_is_no_state_dict(tmp_path: Path, value: object):
    path = tmp_path / "a.pt"
    torch.save(value, path)
    kind = type(value).__name__
    with pytest.raises(InputError, match=f"but holds a {kind} of other things; save"):
        load_state(path)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_weights_must_be_finite(tmp_path: Path, odd: float):
    path = tmp_path / "a.safetensors"
    save_state(path, {"good": torch.ones(2), "bad": torch.tensor([1.0, odd])}, {})
    with pytest.raises(InputError, match=r"a\.safetensors has NaN or infinity in 'bad"):
        load_state(path)


def test_integers_are_always_finite():
    refuse_not_finite({"count": torch.tensor([2**62])}, "a")


def test_metadata_that_is_no_json_object(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"metaensemble": "[1]"})
    with pytest.raises(InputError, match="must be a JSON object, but is a list"):
        load_state(path)
    save_file({"w": torch.ones(1)}, path, metadata={"metaensemble": "{half"})
    with pytest.raises(InputError, match="reading it failed"):
        load_state(path)
    with safe_open(path, "pt") as handle:
        assert handle.metadata()["metaensemble"] == "{half"


def test_a_hash_depends_on_names_dtypes_shapes_and_bytes(state: dict[str, Tensor]):
    weight = state["layer.weight"]
    others = [
        {**state, "layer.weight": weight.reshape(3, 2)},
        {**state, "layer.weight": weight.view(torch.int32)},
        {**state, "layer.bias": -state["layer.bias"]},  # only the sign of a zero
        {("x" if k == "half" else k): v for k, v in state.items()},
        {k: v for k, v in state.items() if k != "mask"},
    ]
    hashes = {hash_state(s) for s in [state, *others]}
    assert len(hashes) == 6


def test_a_hash_does_not_depend_on_order_or_layout(state: dict[str, Tensor]):
    shuffled = dict(reversed(state.items()))
    shuffled["layer.weight"] = state["layer.weight"].T.contiguous().T
    assert hash_state(shuffled) == hash_state(state)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"w": (2, 3)}, r"b lacks 'b' of a; choose --method kd"),
        ({}, r"b lacks 'w' and 1 more of a; choose"),
        ({"w": (2, 3), "b": (2,), "c": (1,)}, r"b has 'c' beyond those of a; choose"),
        ({"w": (3, 2), "b": (2,)}, r"b has 'w' of shape \(3, 2\) where a has \(2, 3\)"),
    ],
)
def test_the_first_difference_is_named(other: dict[str, tuple[int, ...]], what: str):
    first = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    second = {name: torch.zeros(shape) for name, shape in other.items()}
    with pytest.raises(InputError, match=f"^soups need one architecture, but {what}"):
        refuse_different({"a": first, "b": second}, "soups need one architecture")


def test_equal_names_and_shapes_pass_in_any_order():
    first = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    second = {"b": torch.ones(2), "w": torch.ones(2, 3)}
    refuse_different({"a": first, "b": second, "c": first}, "all")
    refuse_different({"a": first}, "all")


FORMS = ["safetensors", "zip", "legacy", "nested", "wrapped"]
"""Ways in which a state dict may lie in a file."""


def written(folder: Path, form: str, state: dict[str, Tensor]) -> Path:
    path = folder / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        save_state(path, state, {"classes": ["a"]})
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "nested":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif form == "wrapped":
        torch.save({f"module.{name}": t for name, t in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_lazy_state_is_the_state(tmp_path: Path, form: str, state: dict[str, Tensor]):
    path = written(tmp_path, form, state)
    lazy = LazyState(path)
    assert len(lazy) == len(state)
    assert set(lazy) == set(state) == set(lazy.keys())
    assert list(lazy) == list(load_state(path)[0])
    assert hash_state(lazy) == hash_state(state)
    assert hash_state(dict(lazy)) == hash_state(state)
    refuse_different({"a": state, "b": lazy, "c": LazyState(path)}, "all")


@pytest.mark.parametrize("form", FORMS)
def test_a_lazy_state_lacks_other_names(
    tmp_path: Path, form: str, state: dict[str, Tensor]
):
    lazy = LazyState(written(tmp_path, form, state))
    assert "layer.weight" in lazy
    for name in ("layer", "module.layer.weight", ""):
        assert name not in lazy
        assert lazy.get(name) is None
        with pytest.raises(KeyError, match=name or "''"):
            lazy[name]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_done_to_a_lazy_state_stays_out_of_the_file(
    tmp_path: Path, form: str, state: dict[str, Tensor]
):
    path = written(tmp_path, form, state)
    before = path.read_bytes()
    lazy = LazyState(path)
    lazy["layer.weight"].add_(1)
    del lazy
    assert path.read_bytes() == before
    assert hash_state(LazyState(path)) == hash_state(state)


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_a_lazy_state_reads_what_it_is_asked_for(tmp_path: Path, form: str):
    """Of the 200 MB in the file, it takes no memory until they are read."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")

    def resident() -> int:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    tensors = {f"{i}": torch.full((5_000_000,), float(i)) for i in range(10)}
    path = written(tmp_path, form, tensors)
    del tensors
    before = resident()
    lazy = LazyState(path)
    assert len(lazy) == 10
    assert lazy["7"][123].item() == 7
    assert resident() - before < 60e6  # one tensor of 20 MB, not ten


def test_a_lazy_state_that_opens_its_file_anew_is_the_state(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states_module, "LET_GO", 4)  # after every tensor but the mask
    lazy = LazyState(written(tmp_path, "safetensors", state))
    kept = dict(lazy)
    assert hash_state(kept) == hash_state(lazy) == hash_state(state)


def test_a_lazy_state_of_what_is_no_state_dict(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="but holds a list of other things; save"):
        LazyState(path)
