import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.metrics import (
    accuracy,
    expected_calibration_error,
    fit_temperature,
    nll,
    reliability,
)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_torchmetrics(scored: tuple[Tensor, Tensor], bins: int):
    log_probs, labels = scored
    reference = MulticlassCalibrationError(7, n_bins=bins, norm="l1")
    expected = float(reference(log_probs.exp(), labels))
    ece = expected_calibration_error(log_probs, labels, bins)
    assert ece == pytest.approx(expected, abs=1e-6)


def five_confidences() -> tuple[Tensor, Tensor]:
    """Confidences .3 .24 .25 .2 .8; only the last two decisions are right."""
    confidence = torch.tensor([0.3, 0.24, 0.25, 0.2, 0.8])
    rest = ((1 - confidence) / 9)[:, None].expand(5, 9)
    labels = torch.tensor([1, 1, 1, 0, 0])
    return torch.cat([confidence[:, None], rest], dim=1).log(), labels


def test_ece_of_five_confidences_worked_by_hand():
    log_probs, labels = five_confidences()
    # two bins, (0, .5] and (.5, 1]: 4/5 |.2475 - 1/4| + 1/5 |.8 - 1|
    assert expected_calibration_error(log_probs, labels, 2) == pytest.approx(0.042)


def test_reliability_of_five_confidences_worked_by_hand():
    confidence, correct, count = reliability(*five_confidences(), 3)
    assert count.tolist() == [4, 0, 1]
    assert confidence.tolist() == pytest.approx([0.2475, 0, 0.8])
    assert correct.tolist() == pytest.approx([0.25, 0, 1])


def test_bins_are_right_closed():
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]]).double().log()
    count = reliability(log_probs, torch.tensor([0, 0]), 4)[2]
    assert count.tolist() == [0, 1, 1, 0]


def test_a_calibrated_model_has_no_error():
    log_probs = torch.tensor([[0.75, 0.25]] * 4).log()
    ece = expected_calibration_error(log_probs, torch.tensor([0, 0, 0, 1]))
    assert ece == pytest.approx(0, abs=1e-7)


def test_the_error_is_at_most_one():
    log_probs = torch.tensor([[1.0, 0.0]] * 3).log()
    assert expected_calibration_error(log_probs, torch.tensor([1, 1, 1])) == 1


def test_no_bins_are_refused():
    with pytest.raises(InputError, match="bins must be at least 1, but is 0"):
        reliability(*five_confidences(), 0)


@pytest.mark.parametrize("scale", [0.1, 0.7, 1.0, 3.0, 50.0])
def test_temperature_never_hurts(scored: tuple[Tensor, Tensor], scale: float):
    logits, labels = scored[0] * scale, scored[1]
    temperature = fit_temperature(logits, labels)
    cooled = (logits / temperature).log_softmax(dim=1)
    assert nll(cooled, labels) <= nll(logits.log_softmax(dim=1), labels)
    assert accuracy(cooled, labels) == accuracy(logits, labels)


def test_temperature_is_found_again():
    rng = generator("temperature")
    logits = torch.randn(50_000, 4, generator=rng)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=rng).squeeze(1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)


def test_temperature_is_a_stationary_point(scored: tuple[Tensor, Tensor]):
    logits, labels = scored[0].double() * 3, scored[1]
    inverse = torch.tensor(1 / fit_temperature(logits, labels), dtype=torch.float64)
    inverse.requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits * inverse, labels)
    assert torch.autograd.grad(loss, inverse)[0].abs() < 1e-9


def test_temperature_stays_in_its_range_without_a_minimum():
    logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    all_right, all_wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert 0.01 <= fit_temperature(logits, all_right) < 0.1
    assert fit_temperature(logits, all_wrong) == pytest.approx(100)


def test_diverged_logits_are_refused():
    with pytest.raises(InputError, match="logits must be numbers, but 1 of 2 rows"):
        fit_temperature(torch.tensor([[0.0, torch.inf], [0, 0]]), torch.tensor([0, 1]))
