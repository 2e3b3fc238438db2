"""Properties of facts/methods.md 9.11 that hold for every network."""

import pytest
import torch
from torch import Tensor

from metaensemble.alignment import (
    apply_permutations,
    compose,
    invert,
    match_many,
    match_weights,
    prove,
    random_permutations,
)
from metaensemble.core.states import State


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-9 * a.abs().max())


def test_a_random_permutation_changes_weights_and_not_logits(case):
    state = case.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    permutations = random_permutations(case.spec, 1)
    permuted = apply_permutations(case.spec, permutations, state)
    logits = case.logits(state)
    assert logits.std() > 0
    assert close(logits, case.logits(permuted))
    assert equal(state, before)
    for group in case.spec.groups:
        one = {group.name: permutations[group.name]}
        changed = apply_permutations(case.spec, one, state)
        assert {n for n in state if not torch.equal(state[n], changed[n])} == {
            axis.tensor for axis in group.axes
        }


def test_the_spec_is_proved(case):
    prove(case.network, case.spec, case.shape, seed=2)


def test_permuting_and_back_is_the_identity(case):
    state = case.state()
    permutations = random_permutations(case.spec, 3)
    permuted = apply_permutations(case.spec, permutations, state)
    back = apply_permutations(case.spec, invert(permutations), permuted)
    assert equal(back, state)


def test_composed_permutations_act_one_after_the_other(case):
    state = case.state()
    first, then = (random_permutations(case.spec, seed) for seed in (4, 5))
    once = apply_permutations(case.spec, compose(first, then), state)
    twice = apply_permutations(
        case.spec, then, apply_permutations(case.spec, first, state)
    )
    assert equal(once, twice)


def test_every_axis_is_covered_or_named(case):
    frozen = " | ".join(where for where, _ in case.spec.frozen)
    covered = {(a.tensor, a.dim) for g in case.spec.groups for a in g.axes}
    for name, tensor in case.network.state_dict().items():
        channels = {0, 1} if tensor.ndim in (2, 4) else set(range(tensor.ndim))
        if ".in_proj_" in name:
            assert (name, 0) in covered
            continue
        for dim in channels:
            if tensor.shape[dim] > 1:
                named = f"{name} dim {dim}" in frozen or name in frozen.split(" | ")
                assert (name, dim) in covered or named


def test_no_entry_is_in_two_groups(case):
    taken = set()
    for group in case.spec.groups:
        for axis in group.axes:
            for entry in range(axis.offset, axis.offset + axis.count * axis.span):
                assert (axis.tensor, axis.dim, entry) not in taken
                taken.add((axis.tensor, axis.dim, entry))


def test_a_hidden_permutation_is_recovered(case):
    state = case.state()
    hidden = apply_permutations(case.spec, random_permutations(case.spec, 6), state)
    matching = match_weights(case.spec, state, hidden)
    assert equal(apply_permutations(case.spec, matching.permutations, hidden), state)


def test_matching_never_falls_below_the_identity(case):
    matching = match_weights(case.spec, case.state(0), case.state(1), seed=7)
    history = matching.history
    assert list(history) == sorted(history)
    assert matching.objective == pytest.approx(history[-1], rel=1e-4)
    permuted = apply_permutations(case.spec, matching.permutations, case.state(1))
    assert close(case.logits(case.state(1)), case.logits(permuted))


def test_many_copies_come_home(case):
    state = case.state()
    copies = [
        apply_permutations(case.spec, random_permutations(case.spec, seed), state)
        for seed in (8, 9)
    ]
    found = match_many(case.spec, [state, *copies])
    for permutations, copy in zip(found, [state, *copies], strict=True):
        assert equal(apply_permutations(case.spec, permutations, copy), state)
