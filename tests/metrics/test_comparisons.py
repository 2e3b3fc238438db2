"""Diversity and fidelity: models against models."""

import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.metrics import agreement, disagreement, kl_to


def decisions(*classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def test_disagreement_worked_by_hand():
    members = torch.stack(
        [decisions(0, 1, 2, 0), decisions(0, 1, 2, 1), decisions(1, 1, 0, 1)]
    )
    # pairs differ on 1, 3 and 2 of 4 examples
    assert disagreement(members) == pytest.approx((1 + 3 + 2) / 12)


def test_disagreement_of_one_member_or_of_equals_is_zero():
    one = decisions(0, 1, 2)
    assert disagreement(one[None]) == 0
    assert disagreement(torch.stack([one, one, one])) == 0


@pytest.mark.usefixtures("unchecked")
def test_a_single_matrix_is_no_ensemble():
    with pytest.raises(InputError, match=r"\(members, batch, classes\).*has \(3, 3\)"):
        disagreement(decisions(0, 1, 2))


def test_agreement_is_one_minus_the_disagreement_of_two(scored: tuple[Tensor, Tensor]):
    noise = torch.randn(scored[0].shape, generator=generator("other"))
    other = (scored[0] + noise).log_softmax(dim=1)
    both = torch.stack([scored[0], other])
    assert agreement(scored[0], other) == pytest.approx(1 - disagreement(both))


def test_kl_worked_by_hand_and_in_the_order_of_the_formula():
    reference = torch.tensor([[0.5, 0.5, 0.0]]).log()
    model = torch.tensor([[0.25, 0.5, 0.25]]).log()
    # 0.5 log 2, and nothing from the class that the reference excludes
    assert kl_to(reference, model) == pytest.approx(0.5 * 0.693147, abs=1e-6)
    assert kl_to(model, reference) == float("inf")
    assert kl_to(model, model) == 0


def test_kl_is_torchs(scored: tuple[Tensor, Tensor]):
    other = scored[0].flip(1)
    expected = torch.nn.functional.kl_div(
        other, scored[0], log_target=True, reduction="batchmean"
    )
    assert kl_to(scored[0], other) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compare", [agreement, kl_to])
def test_outputs_for_different_sets_are_refused(compare):
    left, right = torch.zeros(4, 3).log_softmax(1), torch.zeros(5, 3).log_softmax(1)
    with pytest.raises(InputError, match=r"one shape.*\(4, 3\) and \(5, 3\)"):
        compare(left, right)
