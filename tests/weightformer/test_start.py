"""What a generator writes before it has learnt anything."""

from collections.abc import Callable

import pytest
import torch

from metaensemble.core.states import State
from metaensemble.weightformer import WeightFormer
from tests.weightformer.forms import close, each_network, equal


@each_network
@pytest.mark.parametrize("count", [1, 2, 3])
def test_at_first_the_residual_student_is_the_first_teacher_bit_for_bit(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    count: int,
):
    teachers = teachers_of(name, count)
    asleep = generator_of(name, teachers, asleep=True, head="residual")
    written, _ = asleep(teachers)
    assert equal(written, {key: teachers[0][key] for key in written})


@each_network
@pytest.mark.parametrize("count", [1, 2, 3])
def test_at_first_the_residual_student_is_the_mean_bit_for_bit(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    count: int,
):
    teachers = teachers_of(name, count)
    asleep = generator_of(name, teachers, asleep=True, reference="mean", centre=True)
    written, _ = asleep(teachers)
    mean = {k: torch.stack([state[k] for state in teachers]).mean(0) for k in written}
    assert equal(written, mean)


@each_network
@pytest.mark.parametrize("count", [1, 2, 3])
def test_at_first_the_mixture_is_the_mean(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    count: int,
):
    teachers = teachers_of(name, count)
    asleep = generator_of(name, teachers, asleep=True, head="mixture")
    written, _ = asleep(teachers)
    mean = {k: torch.stack([state[k] for state in teachers]).mean(0) for k in written}
    assert close(written, mean)
    if count < 3:  # a third is no binary fraction
        assert equal(written, mean)


def test_at_first_the_direct_student_has_weights_of_the_teachers_size(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("mlp,width=32")
    direct = generator_of(
        "mlp,width=32", teachers, asleep=True, head="direct", width=64
    )
    written, _ = direct(teachers)
    for key, tensor in written.items():
        if tensor.ndim > 1:
            like = torch.stack([state[key] for state in teachers])
            assert 0.5 < tensor.std() / like.std() < 2, key
