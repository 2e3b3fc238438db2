"""Many networks in one frame: MergeMany of Git Re-Basin (arXiv 2209.04836)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaensemble.alignment.apply import (
    Permutations,
    apply_permutations,
    compose,
    identity,
    invert,
)
from metaensemble.alignment.groups import PermutationSpec
from metaensemble.alignment.matching import match_weights
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation
from metaensemble.core.states import State, refuse_different

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

    Args:
        spec: the permutations of the network of all states.
        states: at least one.
        seed: of the orders of networks and of groups.
        rounds: at most so many matchings of every network.

    Returns:
        Permutations of each state; those of the first are the identity.

    Raises:
        InputError: no states, or they differ in names or shapes.
    """
    if not states:
        raise InputError("matching needs at least one network, but got none")
    named = {f"network {i + 1}": state for i, state in enumerate(states)}
    refuse_different(named, "networks to be matched must share one architecture")
    found = [identity(spec)]
    total = _sum_of({}, states[0], 1)
    for i, state in enumerate(states[1:], start=1):
        mean = {name: tensor / i for name, tensor in total.items()}
        matching = match_weights(spec, {**state, **mean}, state, seed)
        found.append(matching.permutations)
        total = _sum_of(total, apply_permutations(spec, found[i], state), 1)
    for turn in range(rounds if len(states) > 2 else 0):
        gained = False
        for i in permutation(len(states), seed, "many", turn).tolist():
            own = apply_permutations(spec, found[i], states[i])
            rest = _sum_of(total, own, -1)
            mean = {name: t / (len(states) - 1) for name, t in rest.items()}
            matching = match_weights(spec, {**own, **mean}, own, seed)
            gain = matching.objective - matching.history[0]
            if gain > ROUNDING * abs(matching.objective):
                found[i] = compose(found[i], matching.permutations)
                own = apply_permutations(spec, found[i], states[i])
                gained = True
            total = _sum_of(rest, own, 1)
        if not gained:
            break
    home = invert(found[0])
    return [compose(permutations, home) for permutations in found]


def _sum_of(
    total: Mapping[str, Tensor], state: Mapping[str, Tensor], sign: int
) -> State:
    """Return the sum, or the difference, of the floating tensors in float64."""
    return {
        name: total[name] + sign * tensor.double() if total else tensor.double()
        for name, tensor in state.items()
        if torch.is_floating_point(tensor)
    }
