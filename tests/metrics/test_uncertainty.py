import math

import pytest
import torch
from torch.distributions import Categorical, Dirichlet

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.metrics import dirichlet_uncertainty, ensemble_uncertainty


def test_members_that_disagree_lack_knowledge():
    sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
    found = ensemble_uncertainty(sure)
    assert found.total.item() == pytest.approx(math.log(2))
    assert found.data.item() == pytest.approx(0)
    assert found.knowledge.item() == pytest.approx(math.log(2))


def test_members_that_agree_on_doubt_see_it_in_the_data():
    found = ensemble_uncertainty(torch.full((3, 2, 4), -math.log(4)))
    torch.testing.assert_close(found.total, torch.full((2,), math.log(4)).double())
    torch.testing.assert_close(found.data, found.total)
    assert (found.knowledge == 0).all()


def test_the_split_of_an_ensemble_adds_up():
    logits = torch.randn(4, 6, 5, generator=generator("logits"))
    found = ensemble_uncertainty(logits.log_softmax(-1))
    assert (found.knowledge > 0).all()
    torch.testing.assert_close(found.total, found.data + found.knowledge)
    entropies = Categorical(logits=logits).entropy().double().mean(0)
    torch.testing.assert_close(found.data, entropies, atol=1e-5, rtol=0)


def test_the_split_of_a_dirichlet_is_that_of_many_members_drawn_from_it():
    alpha = torch.tensor([[2.0, 0.5, 4.0], [20.0, 30.0, 1.0]])
    torch.manual_seed(0)
    members = Dirichlet(alpha).sample(torch.Size([40_000]))
    drawn = ensemble_uncertainty(members.clamp_min(1e-30).log())
    found = dirichlet_uncertainty(alpha.log())
    for name in ("total", "data", "knowledge"):
        exact, sampled = getattr(found, name), getattr(drawn, name)
        torch.testing.assert_close(sampled, exact, atol=5e-3, rtol=0)


def test_the_total_is_the_entropy_of_the_softmax():
    logits = 3 * torch.randn(6, 5, generator=generator("logits"))
    expected = Categorical(logits=logits).entropy().double()
    found = dirichlet_uncertainty(logits)
    torch.testing.assert_close(found.total, expected, atol=1e-5, rtol=0)


def test_a_larger_concentration_leaves_the_mean_and_lowers_the_lack_of_knowledge():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    few, many = dirichlet_uncertainty(logits), dirichlet_uncertainty(logits + 10)
    torch.testing.assert_close(few.total, many.total)
    assert many.knowledge.item() == pytest.approx(0, abs=1e-4)
    assert few.knowledge.item() > 0.05


def test_refusals():
    with pytest.raises(InputError, match=r"\(batch, classes\) .* but have \(0, 3\)"):
        dirichlet_uncertainty(torch.zeros(0, 3))
    with pytest.raises(InputError, match=r"\(members, batch, classes\) .* \(0, 2, 3\)"):
        ensemble_uncertainty(torch.zeros(0, 2, 3))
