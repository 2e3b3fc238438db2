"""Equation 1 of Fei et al. 2022: the student against the mean of the teachers."""

import pytest
import torch
from torch import Tensor

from metaensemble.core.seeds import generator
from metaensemble.methods.divergence import Direction, kl_divergence
from metaensemble.teachers import ensemble_log_probs

each_direction = pytest.mark.parametrize("direction", ["forward", "reverse"])


@pytest.fixture
def teacher_logits() -> Tensor:
    return 3 * torch.randn(4, 5, 7, generator=generator("teachers"))


@pytest.fixture
def student() -> Tensor:
    """Log-probabilities."""
    return torch.randn(5, 7, generator=generator("student")).log_softmax(-1)


@each_direction
def test_it_is_zero_if_the_student_is_the_mean_of_the_teachers(
    teacher_logits: Tensor, direction: Direction
):
    target = ensemble_log_probs(teacher_logits)
    mean = teacher_logits.softmax(-1).mean(0).log()  # of probabilities
    assert kl_divergence(target, mean, direction).item() == pytest.approx(0, abs=1e-6)


@each_direction
@pytest.mark.parametrize("row", range(5))
def test_it_is_positive_if_the_student_differs_in_one_image_only(
    teacher_logits: Tensor, direction: Direction, row: int
):
    target = ensemble_log_probs(teacher_logits)
    student = target.clone()
    student[row] = (student[row] + 0.5 * torch.arange(7)).log_softmax(-1)
    assert kl_divergence(target, student, direction).item() > 1e-3


def test_the_mean_of_logits_is_another_target(teacher_logits: Tensor):
    target = ensemble_log_probs(teacher_logits)
    other = ensemble_log_probs(teacher_logits, "logits")
    assert kl_divergence(target, other).item() > 1e-2


def test_for_one_teacher_it_is_the_plain_divergence(
    teacher_logits: Tensor, student: Tensor
):
    teacher = teacher_logits[0].log_softmax(-1)
    target = ensemble_log_probs(teacher_logits[:1])
    reverse = (student.exp() * (student - teacher)).sum(-1).mean()
    forward = (teacher.exp() * (teacher - student)).sum(-1).mean()
    torch.testing.assert_close(kl_divergence(target, student, "reverse"), reverse)
    torch.testing.assert_close(kl_divergence(target, student, "forward"), forward)
    assert not torch.isclose(reverse, forward)


@each_direction
def test_identical_teachers_are_one_teacher(
    teacher_logits: Tensor, student: Tensor, direction: Direction
):
    one = ensemble_log_probs(teacher_logits[:1])
    same = ensemble_log_probs(teacher_logits[:1].expand(6, -1, -1))
    torch.testing.assert_close(
        kl_divergence(one, student, direction), kl_divergence(same, student, direction)
    )


@each_direction
def test_it_does_not_depend_on_the_order_of_the_teachers(
    teacher_logits: Tensor, student: Tensor, direction: Direction
):
    torch.testing.assert_close(
        kl_divergence(ensemble_log_probs(teacher_logits), student, direction),
        kl_divergence(ensemble_log_probs(teacher_logits.flip(0)), student, direction),
    )


@each_direction
def test_it_is_finite_for_teachers_that_are_sure(student: Tensor, direction: Direction):
    logits = torch.zeros(2, 5, 7)
    logits[:, :, 0] = 500.0
    assert torch.isfinite(kl_divergence(ensemble_log_probs(logits), student, direction))
