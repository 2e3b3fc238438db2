import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.teachers import (
    ensemble_log_probs,
    ensemble_nll,
    greedy_selection,
    simplex_weights,
)

AVERAGES = ["probabilities", "logits"]


@pytest.fixture
def library() -> tuple[Tensor, Tensor]:
    """Logits of five members, from good to useless, and labels of 40 images."""
    labels = torch.arange(40) % 4
    random = generator("library")
    noise = torch.randn(5, 40, 4, generator=random)
    signal = (
        torch.eye(4)[labels] * torch.tensor([2.0, 1.8, 1.5, 0.5, -2.0])[:, None, None]
    )
    return signal + noise, labels


def test_the_nll_by_hand():
    # members say 0.9 and 0.5 of the right class, weighed 3 to 1: 0.8
    logits = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
    labels = torch.tensor([0])
    assert ensemble_nll(logits, labels) == pytest.approx(-math.log(0.7))
    weighed = ensemble_nll(logits, labels, weights=(0.75, 0.25))
    assert weighed == pytest.approx(-math.log(0.8))


@pytest.mark.parametrize("average", AVERAGES)
def test_the_selected_ensemble_is_at_least_as_good_as_the_best_member(
    library, average: Any
):
    logits, labels = library
    found = greedy_selection(logits, labels, average)
    alone = [ensemble_nll(rows[None], labels) for rows in logits]
    assert found.path[0] == pytest.approx(min(alone))
    assert found.nll <= min(alone)
    assert found.nll == pytest.approx(min(found.path), rel=1e-8)
    own = ensemble_nll(logits, labels, average, found.weights)
    assert found.nll == pytest.approx(own, abs=1e-6)
    assert found.counts[4] == 0  # the useless one


@pytest.mark.parametrize("average", AVERAGES)
def test_weights_are_multiples_of_one_step(library, average: Any):
    logits, labels = library
    found = greedy_selection(logits, labels, average, steps=7)
    taken = sum(found.counts)
    assert len(found.path) == 7
    assert found.path[taken - 1] == found.nll
    assert found.weights == tuple(count / taken for count in found.counts)
    assert sum(found.weights) == pytest.approx(1)


@pytest.mark.parametrize("average", AVERAGES)
def test_members_that_are_there_twice_change_no_value(library, average: Any):
    logits, labels = library
    once = greedy_selection(logits, labels, average)
    twice = greedy_selection(logits.repeat(2, 1, 1), labels, average)
    assert twice.path == once.path
    assert twice.counts == once.counts + (0,) * 5  # among equals the first wins


@pytest.mark.parametrize("average", AVERAGES)
def test_each_step_takes_the_member_that_helps_most(library, average: Any):
    # the slow twin: averages all logits taken so far, every time
    logits, labels = library
    order: list[int] = []
    path = []
    for _ in range(6):
        values = []
        for i in range(5):
            together = ensemble_log_probs(logits[[*order, i]].double(), average)
            values.append(-together.double().gather(1, labels[:, None]).mean().item())
        order.append(values.index(min(values)))
        path.append(min(values))
    found = greedy_selection(logits, labels, average, steps=6)
    assert found.path == pytest.approx(path, abs=1e-5)


def test_members_may_be_taken_again():
    # the mean is best at two thirds of the first, one third of the second
    first, second = torch.tensor([0.8, 0.2]), torch.tensor([0.2, 0.8])
    logits = torch.stack([first, second])[:, None].expand(2, 5, 2).log()
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = greedy_selection(logits.contiguous(), labels, steps=3)
    assert found.counts == (2, 1)
    assert found.nll == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4)))


def test_probabilities_that_underflow_are_selected_among():
    logits = torch.tensor([[[0.0, -2000.0]], [[0.0, -1000.0]]])
    found = greedy_selection(logits, torch.tensor([1]))
    assert found.counts == (0, 1)
    assert math.isfinite(found.nll)


def test_weights_on_the_simplex_find_the_optimum_by_hand():
    # w 0.8 + (1 - w) 0.2 must be the frequency 0.6 of class 0: w = 2/3
    first, second = torch.tensor([0.8, 0.2]), torch.tensor([0.2, 0.8])
    logits = torch.stack([first, second])[:, None].expand(2, 5, 2).log()
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert simplex_weights(logits.contiguous(), labels) == pytest.approx(
        (2 / 3, 1 / 3), abs=1e-4
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_no_other_weights_are_better(library, average: Any):
    logits, labels = library
    weights = simplex_weights(logits, labels, average)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    assert weights[4] == 0  # the useless one need not run
    best = ensemble_nll(logits, labels, average, weights)
    assert best < ensemble_nll(logits, labels, average)
    random = generator("others")
    for _ in range(50):
        nearby = torch.tensor(weights) + 0.1 * torch.rand(5, generator=random)
        other = tuple((nearby / nearby.sum()).tolist())
        assert best <= ensemble_nll(logits, labels, average, other) + 1e-4
    assert best <= greedy_selection(logits, labels, average).nll + 1e-3


@pytest.mark.parametrize("average", AVERAGES)
def test_weights_follow_their_members(library, average: Any):
    logits, labels = library
    weights = simplex_weights(logits, labels, average)
    assert simplex_weights(logits, labels, average) == weights
    turned = simplex_weights(logits.flip(0), labels, average)
    assert turned[::-1] == pytest.approx(weights, abs=1e-3)


def test_equal_members_weigh_the_same(library):
    logits, labels = library
    same = logits[:1].expand(3, -1, -1).contiguous()
    assert simplex_weights(same, labels) == (1 / 3,) * 3
    assert simplex_weights(logits[:1], labels) == (1.0,)


def test_refusals(library):
    logits, labels = library
    with pytest.raises(InputError, match="at least 1 step, but has 0"):
        greedy_selection(logits, labels, steps=0)
    for function in (greedy_selection, simplex_weights):
        with pytest.raises(InputError, match=r"one image, but there are 5 and 0; rai"):
            function(logits[:, :0], labels[:0])
        with pytest.raises(InputError, match="but there are 0 and 40"):
            function(logits[:0], labels)
