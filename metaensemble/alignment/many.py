"""Many networks in one frame: MergeMany of Git Re-Basin (arXiv 2209.04836)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from metaensemble.alignment.apply import (
    Permutations,
    apply_permutations,
    compose,
    identity,
    invert,
    refuse_unfitting,
)
from metaensemble.alignment.groups import PermutationSpec
from metaensemble.alignment.matching import match_weights
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation
from metaensemble.core.states import refuse_different

ROUNDING = 1e-6
"""A gain below this fraction of the objective is rounding."""


def match_many(
    spec: PermutationSpec,
    states: Sequence[Mapping[str, Tensor]],
    seed: int = 0,
    rounds: int = 100,
) -> list[Permutations]:
    """Return permutations that bring networks to one frame, that of the first.

    Each is matched to the mean of those before it. Then, in a seeded random order, each
    is matched again to the mean of all others, until a round gains nothing (arXiv
    2209.04836, appendix, algorithm 3). Every step raises the sum over pairs of the
    inner products of their weights.

    States may be read from their files (`LazyState`): beside the running sum, no more
    than one of them is held at a time, and what `match_weights` makes of it.

    Args:
        spec: the permutations of the network of all states.
        states: at least one.
        seed: of the orders of networks and of groups.
        rounds: at most so many matchings of every network.

    Returns:
        Permutations of each state; those of the first are the identity.

    Raises:
        InputError: no states, or they differ in names or shapes, or are not of the
            spec's network.
    """
    if not states:
        raise InputError("matching needs at least one network, but got none")
    named = {f"network {i + 1}": state for i, state in enumerate(states)}
    refuse_different(named, "networks to be matched must share one architecture")
    refuse_unfitting(spec, states[0])
    found = [identity(spec)]
    total = _Sum(spec, states[0])
    for i, state in enumerate(states[1:], start=1):
        matching = match_weights(spec, total.mean(state), state, seed)
        found.append(matching.permutations)
        total.add(apply_permutations(spec, found[i], state))
    for turn in range(rounds if len(states) > 2 else 0):
        gained = False
        for i in permutation(len(states), seed, "many", turn).tolist():
            own = apply_permutations(spec, found[i], states[i])
            total.subtract(own)
            matching = match_weights(spec, total.mean(own), own, seed)
            gain = matching.objective - matching.history[0]
            if gain > ROUNDING * abs(matching.objective):
                found[i] = compose(found[i], matching.permutations)
                own = apply_permutations(spec, matching.permutations, own)
                gained = True
            total.add(own)
        if not gained:
            break
    home = invert(found[0])
    return [compose(permutations, home) for permutations in found]


class _Sum:
    """The running sum of states in float64: of the tensors that are matched only."""

    def __init__(self, spec: PermutationSpec, first: Mapping[str, Tensor]) -> None:
        axes = (axis for group in spec.groups for axis in group.axes)
        names = {axis.tensor for axis in axes if not axis.statistic}
        self.tensors = {n: first[n].to(torch.float64, copy=True) for n in names}
        self.count = 1

    def add(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor += state[name]
        self.count += 1

    def subtract(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor -= state[name]
        self.count -= 1

    def mean(self, state: Mapping[str, Tensor]) -> "_Mean":
        return _Mean(self, state)


class _Mean(Mapping[str, Tensor]):
    """The mean of what was summed, tensor by tensor; the rest is a state's."""

    def __init__(self, total: _Sum, state: Mapping[str, Tensor]) -> None:
        self.total = total
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.total.tensors.get(name)
        return self.state[name] if tensor is None else tensor / self.total.count

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)
