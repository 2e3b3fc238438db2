"""Assignments by brute force, matching of hand-made weights, messages."""

from itertools import permutations as all_orders

import pytest
import torch

from metaensemble.alignment import (
    Axis,
    Group,
    PermutationSpec,
    apply_permutations,
    identity,
    match_many,
    match_weights,
    random_permutations,
)
from metaensemble.alignment.apply import refuse_invalid
from metaensemble.alignment.assignment import best_permutation
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator

ONE = Group(
    name="hidden",
    size=2,
    axes=(
        Axis(tensor="in", dim=0, count=2),
        Axis(tensor="out", dim=1, count=2),
        Axis(tensor="mean", dim=0, count=2, statistic=True),
    ),
)


def test_two_units_that_changed_places_are_found():
    spec = PermutationSpec(groups=(ONE,))
    a = {
        "in": torch.tensor([[1.0, 0], [0, 2]]),
        "out": torch.tensor([[3.0, 4]]),
        "mean": torch.tensor([5.0, 6]),
    }
    b = {
        "in": torch.tensor([[0.0, 2], [1, 0]]),
        "out": torch.tensor([[4.0, 3]]),
        "mean": torch.tensor([6.0, 5]),
    }
    matching = match_weights(spec, a, b)
    assert matching.permutations["hidden"].tolist() == [1, 0]
    # 1 + 4 of the first layer, 9 + 16 of the second; the mean has no say.
    assert matching.objective == 30
    # The identity: 0 of the first layer, 3 * 4 + 4 * 3 of the second.
    assert matching.history == (24, 30)
    back = apply_permutations(spec, matching.permutations, b)
    assert all(torch.equal(a[name], back[name]) for name in a)


def test_one_hidden_layer_matches_as_well_both_ways(case_of):
    case = case_of("mlp,width=8")
    spec = case.spec.without([g.name for g in case.spec.groups[1:]], "for the test")
    there = match_weights(spec, case.state(0), case.state(1))
    back = match_weights(spec, case.state(1), case.state(0))
    assert there.objective == pytest.approx(back.objective, rel=1e-5)


@pytest.mark.parametrize(("heads", "parts"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_the_best_permutation_is_that_of_brute_force(heads, parts):
    size = 4 if parts == 2 else 6
    size = 8 if (heads, parts) == (2, 2) else size
    group = Group(name="g", size=size, axes=(), heads=heads, parts=parts)
    spec = PermutationSpec(groups=(group,))
    gain = torch.randn(size, size, generator=generator("gain", heads, parts))
    best = best_permutation(group, gain)
    refuse_invalid(spec, {"g": best})

    def allowed(order: torch.Tensor) -> bool:
        try:
            refuse_invalid(spec, {"g": order})
        except InputError:
            return False
        return True

    rows = torch.arange(size)
    half = size // parts
    orders = (
        torch.tensor(p)
        for p in all_orders(range(size))
        if parts == 1 or all(i < half for i in p[:half])
    )
    brute = max(float(gain[rows, p].sum()) for p in orders if allowed(p))
    assert float(gain[rows, best].sum()) == pytest.approx(brute, rel=1e-5)


def test_random_permutations_of_heads_are_allowed_and_seeded():
    group = Group(name="g", size=24, axes=(), heads=3, parts=2)
    tiny = Group(name="t", size=2, axes=(), heads=2)
    spec = PermutationSpec(groups=(group, tiny))
    for seed in range(9):
        drawn = random_permutations(spec, seed)
        refuse_invalid(spec, drawn)
        assert drawn["t"].tolist() == [1, 0]
        assert torch.equal(drawn["g"], random_permutations(spec, seed)["g"])
        assert drawn["g"].tolist() != list(range(24))


def test_dead_and_broken_units_do_not_stop_the_matching(case_of):
    case = case_of("convnet,width=4")
    a, b = case.state(0), case.state(1)
    a["conv2.weight"][0] = float("nan")
    b["conv3.weight"][:] = 0
    b["bn1.weight"][0] = float("inf")
    matching = match_weights(case.spec, a, b)
    refuse_invalid(case.spec, matching.permutations)
    assert matching.objective > matching.history[0]


def test_more_restarts_are_never_worse_and_the_seed_decides(case_of):
    case = case_of("mlp,width=8,depth=3,batchnorm=true")
    a, b = case.state(0), case.state(1)
    one, three = (match_weights(case.spec, a, b, restarts=n) for n in (1, 3))
    again = match_weights(case.spec, a, b, restarts=3)
    assert three.objective >= one.objective
    assert again.history == three.history


def test_a_network_is_aligned_with_itself(case_of):
    case = case_of("bottlenecks")
    matching = match_weights(case.spec, case.state(), case.state())
    for name, permutation in identity(case.spec).items():
        assert torch.equal(matching.permutations[name], permutation)


def test_many_networks_agree_better_than_before(case_of):
    case = case_of("mlp,width=8")
    states = [case.state(seed) for seed in range(4)]

    def agreement(states):
        sums = [torch.stack([s[n] for s in states]).sum(0) for n in states[0]]
        return sum(float((t**2).sum()) for t in sums)

    found = match_many(case.spec, states, seed=1)
    aligned = [
        apply_permutations(case.spec, p, s) for p, s in zip(found, states, strict=True)
    ]
    assert agreement(aligned) > agreement(states)
    for name, permutation in identity(case.spec).items():
        assert torch.equal(found[0][name], permutation)


def test_one_network_needs_no_matching(case_of):
    case = case_of("mlp,width=8")
    (only,) = match_many(case.spec, [case.state()])
    assert all(p.tolist() == list(range(len(p))) for p in only.values())


def test_messages(case_of):
    case = case_of("mlp,width=8")
    state = case.state()
    with pytest.raises(InputError, match="at least one network, but got none"):
        match_many(case.spec, [])
    with pytest.raises(InputError, match="at least one restart and one sweep"):
        match_weights(case.spec, state, state, restarts=0)
    lacking = {n: t for n, t in state.items() if n != "fc.weight"}
    with pytest.raises(InputError, match=r"the other lacks 'fc.weight'"):
        match_weights(case.spec, state, lacking)
    with pytest.raises(InputError, match=r"'nothing' is none; the groups are hidden.0"):
        apply_permutations(case.spec, {"nothing": torch.arange(8)}, state)
    for wrong in (torch.arange(7), torch.zeros(8, dtype=torch.int64), torch.rand(8)):
        with pytest.raises(InputError, match=r"'hidden.0' needs a permutation of 8"):
            apply_permutations(case.spec, {"hidden.0": wrong}, state)
    with pytest.raises(InputError, match=r"but lacks 'hidden.0.weight'"):
        apply_permutations(case.spec, {}, {})
    short = {**state, "hidden.0.weight": torch.zeros(7, 64)}
    with pytest.raises(InputError, match="needs at least 8 entries in dimension 0"):
        apply_permutations(case.spec, {}, short)


def test_heads_must_stay_together():
    group = Group(name="g", size=4, axes=(), heads=2)
    spec = PermutationSpec(groups=(group,))
    with pytest.raises(InputError, match="4 channels that keeps its heads together"):
        apply_permutations(spec, {"g": torch.tensor([0, 2, 1, 3])}, {})
    refuse_invalid(spec, {"g": torch.tensor([3, 2, 0, 1])})
