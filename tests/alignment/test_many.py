"""Many networks: the same frame from files as from memory, and in little of it."""

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaensemble.alignment import apply_permutations, match_many
from metaensemble.core.errors import InputError
from metaensemble.core.states import LazyState, save_state


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that were made under it and still live."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key in self._known or not storage.nbytes():
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Fresh(Mapping[str, Tensor]):
    """A state whose tensors are made anew whenever they are asked for."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@pytest.mark.parametrize("name", ["mlp,width=8", "resnet20,width=0.5", "squeezing"])
def test_states_in_files_are_matched_as_those_in_memory(case_of, tmp_path, name):
    case = case_of(name)
    states = [case.state(seed) for seed in range(4)]
    before = [{n: t.clone() for n, t in state.items()} for state in states]
    for i, state in enumerate(states):
        save_state(tmp_path / f"{i}.safetensors", state, {})
    lazy = [LazyState(tmp_path / f"{i}.safetensors") for i in range(4)]
    held, read = (match_many(case.spec, s, seed=2) for s in (states, lazy))
    for mine, its in zip(held, read, strict=True):
        assert all(torch.equal(mine[group], its[group]) for group in mine)
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[n], old[n]) for n in state)
    one, again = (apply_permutations(case.spec, held[1], s[1]) for s in (states, lazy))
    assert all(torch.equal(one[n], again[n]) for n in one)


def test_more_networks_take_no_more_memory(case_of):
    case = case_of("bottlenecks")
    states = [Fresh(case.state(seed)) for seed in range(9)]
    size = sum(t.numel() * 4 for t in states[0].state.values())
    peaks = []
    for count in (3, 9):
        with Held() as held:
            match_many(case.spec, states[:count], rounds=2)
        peaks.append(held.peak)
    permutations = 8 * sum(group.size for group in case.spec.groups)
    assert size < peaks[0]
    # Every network keeps its permutations, and while they are composed, twice.
    assert peaks[1] <= peaks[0] + 2 * 6 * permutations + 0.1 * size


def test_states_in_double_precision_stay_as_they_are(case_of):
    case = case_of("mlp,width=8")
    states = [case.state(seed) for seed in range(3)]
    double = [
        {n: t.double() if t.is_floating_point() else t for n, t in s.items()}
        for s in states
    ]
    before = double[0]["fc.weight"].clone()
    found = match_many(case.spec, double)
    assert torch.equal(double[0]["fc.weight"], before)
    expected = match_many(case.spec, states)
    for mine, its in zip(found, expected, strict=True):
        assert all(torch.equal(mine[group], its[group]) for group in mine)


def test_networks_with_different_graphs_are_refused(case_of):
    ours, other = case_of("bottlenecks"), case_of("squeezing")
    with pytest.raises(InputError, match=r"architecture, but network 2 lacks 'blocks"):
        match_many(ours.spec, [ours.state(), other.state()])
    with pytest.raises(InputError, match="a state must have the tensors of its spec"):
        match_many(ours.spec, [other.state(), other.state()])
    with pytest.raises(InputError, match="derive the spec from this state's network"):
        match_many(ours.spec, [other.state()])
