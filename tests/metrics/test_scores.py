import math

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.metrics import brier, nll


def test_nll_is_scikit_learns_log_loss(scored: tuple[Tensor, Tensor]):
    log_probs, labels = scored
    probs = log_probs.double().exp()
    probs /= probs.sum(dim=1, keepdim=True)
    expected = log_loss(labels.numpy(), probs.numpy())
    assert nll(log_probs, labels) == pytest.approx(expected, rel=1e-6)


def test_brier_of_two_classes_is_twice_scikit_learns(scored: tuple[Tensor, Tensor]):
    log_probs = scored[0][:, :2].log_softmax(dim=1)
    labels = scored[1] % 2
    positive = log_probs[:, 1].exp()
    expected = brier_score_loss(labels.numpy(), positive.numpy())
    assert brier(log_probs, labels) == pytest.approx(2 * float(expected), rel=1e-5)


def test_scores_worked_by_hand():
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    labels = torch.tensor([0, 1])
    # (0.25 + 0.09 + 0.04 + 0.01 + 0.81 + 0.64) / 2
    assert brier(log_probs, labels) == pytest.approx(0.92, abs=1e-6)
    expected = -(math.log(0.5) + math.log(0.1)) / 2
    assert nll(log_probs, labels) == pytest.approx(expected, abs=1e-6)


def test_certain_and_right_scores_zero():
    log_probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    assert nll(log_probs, torch.tensor([0, 1])) == 0
    assert brier(log_probs, torch.tensor([0, 1])) == 0
    assert brier(log_probs, torch.tensor([1, 0])) == 2


def test_the_ensembles_nll_is_at_most_its_members_mean(scored: tuple[Tensor, Tensor]):
    labels = scored[1]  # Jensen: -log of the mean is at most the mean of -log
    noise = torch.randn(4, *scored[0].shape, generator=generator("members"))
    members = (scored[0] + noise).log_softmax(dim=2)
    ensemble = members.logsumexp(dim=0) - math.log(4)
    assert nll(ensemble, labels) <= sum(nll(m, labels) for m in members) / 4


@pytest.mark.parametrize("score", [nll, brier])
def test_logits_are_refused(score):
    with pytest.raises(InputError, match=r"a row adds up to 5\.4.*apply log_softmax"):
        score(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
