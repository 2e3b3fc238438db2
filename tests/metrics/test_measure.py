import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from metaensemble.metrics import (
    Measured,
    accuracy,
    brier,
    expected_calibration_error,
    measure,
    nll,
    top_k,
)


def test_measure_gathers_the_six_numbers(scored: tuple[Tensor, Tensor]):
    assert measure(*scored) == Measured(
        accuracy=accuracy(*scored),
        top5=top_k(*scored, 5),
        nll=nll(*scored),
        brier=brier(*scored),
        ece=expected_calibration_error(*scored),
        count=400,
    )


def test_measure_accepts_half_precision(scored: tuple[Tensor, Tensor]):
    half = measure(scored[0].bfloat16(), scored[1])
    assert half.nll == pytest.approx(measure(*scored).nll, rel=0.01)


def test_members_order_does_not_matter(scored: tuple[Tensor, Tensor]):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    shuffled = measure(scored[0][order], scored[1][order])
    assert shuffled.model_dump() == pytest.approx(measure(*scored).model_dump())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_measured_value_is_a_number_in_its_range(value: float):
    with pytest.raises(ValidationError, match="nll"):
        Measured(accuracy=0.5, top5=1, nll=value, brier=0.1, ece=0, count=1)
