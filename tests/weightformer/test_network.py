"""Properties that any generator of weights must have, whatever it has learnt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.core.states import State, hash_state
from metaensemble.weightformer import (
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
)
from tests.weightformer.forms import (
    FORMS,
    SHAPE,
    VIT,
    close,
    each_form,
    each_head,
    each_network,
    equal,
    tie_ids,
)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, *SHAPE, generator=generator("images"))


@each_network
@each_form
def test_the_generated_state_dict_loads_strictly(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    images: Tensor,
    name: str,
    head: dict[str, Any],
):
    network, teachers = network_of(name), teachers_of(name)
    written, _ = generator_of(name, teachers, **head)(teachers)
    network.load_state_dict({**network.state_dict(), **written})
    assert (
        written.keys() == dict(network.named_parameters(remove_duplicate=False)).keys()
    )
    assert torch.isfinite(network(images)).all()


@each_form
def test_teachers_stay_as_they_are_and_get_no_gradient(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers, **head).train()
    for state in teachers:
        for tensor in state.values():
            tensor.requires_grad_(tensor.is_floating_point())
    before = [hash_state(state) for state in teachers]
    written, consistency = weightformer(teachers, shift=1)
    (sum(t.sum() for t in written.values()) + consistency).backward()
    assert [hash_state(state) for state in teachers] == before
    assert all(tensor.grad is None for state in teachers for tensor in state.values())


@pytest.mark.parametrize("name", ["convnet,width=2", VIT])
@each_form
def test_gradients_through_the_student_reach_every_generator_parameter(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    images: Tensor,
    name: str,
    head: dict[str, Any],
):
    student, teachers = network_of(name), teachers_of(name, 3)
    weightformer = generator_of(name, teachers, **head).train()
    written, _ = weightformer(teachers)
    logits = functional_call(student, written, (images,))
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    rows = max(layer.rows for layer in weightformer.spec.layers)
    in_use = {"position.weight": slice(1, rows + 1), "model_id.weight": slice(0, 4)}
    for key, parameter in weightformer.named_parameters():
        if key.startswith("score."):
            # A bias is common to all teachers and leaves their softmax unchanged.
            if key == "score.bias" or head["head"] != "mixture":
                continue
        assert parameter.grad is not None, key
        used = parameter.grad[in_use.get(key, slice(None))]
        assert torch.isfinite(used).all(), key
        assert used.flatten(1).any(1).all() if key in in_use else used.any(), key


def test_gradients_agree_with_finite_differences(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    images: Tensor,
):
    name = "mlp,depth=1,width=3"
    student, teachers = network_of(name).double(), teachers_of(name)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for head in FORMS:
        weightformer = generator_of(name, teachers, **head).double()

        def loss(weightformer: WeightFormer = weightformer) -> Tensor:
            written, shift = weightformer(teachers, 1)
            logits = functional_call(student, written, (images.double(),))
            return F.cross_entropy(logits, labels) + shift

        loss().backward()
        random = generator("directions")
        for _ in range(3):
            slope, differences = 0.0, []
            steps = [
                1e-6 * torch.randn(p.shape, generator=random, dtype=p.dtype)
                for p in weightformer.parameters()
            ]
            for sign in (1, -2):  # there, and as far to the other side
                with torch.no_grad():
                    for parameter, step in zip(
                        weightformer.parameters(), steps, strict=True
                    ):
                        parameter += sign * step
                    differences.append(loss().item())
            with torch.no_grad():
                for parameter, step in zip(
                    weightformer.parameters(), steps, strict=True
                ):
                    parameter += step
                    if parameter.grad is not None:
                        slope += 2 * (parameter.grad * step).sum().item()
            assert differences[0] - differences[1] == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", ["convnet,width=2", VIT])
@each_head
def test_with_tied_ids_the_order_of_the_later_teachers_is_indifferent(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    head: dict[str, Any],
):
    first, *others = teachers_of(name, 4)
    weightformer = generator_of(name, [first, *others], **head)
    told_apart, _ = weightformer([first, *others])
    swapped, _ = weightformer([first, *reversed(others)])
    assert not close(told_apart, swapped)  # their ids tell them apart
    tie_ids(weightformer, 2)
    tied, _ = weightformer([first, *others])
    swapped, _ = weightformer([first, *reversed(others)])
    assert close(tied, swapped)


@each_head
def test_which_teacher_is_first_matters(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
):
    teachers = teachers_of("convnet,width=2", 3)
    weightformer = generator_of("convnet,width=2", teachers, **head)
    tie_ids(weightformer, 1)
    in_order, _ = weightformer(teachers)
    rotated, _ = weightformer([*teachers[1:], teachers[0]])
    assert not close(in_order, rotated)


def test_a_pure_mixture_with_tied_ids_has_no_first_teacher(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("convnet,width=2", 3)
    weightformer = generator_of("convnet,width=2", teachers, head="mixture", gain=0)
    tie_ids(weightformer, 1)
    in_order, _ = weightformer(teachers)
    assert not close(in_order, weightformer(teachers[:2])[0])
    for order in ([1, 2, 0], [2, 1, 0]):
        assert close(in_order, weightformer([teachers[i] for i in order])[0])


def test_a_pure_mixture_of_one_network_is_that_network(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    (teacher,) = teachers_of("convnet,width=2", 1)
    weightformer = generator_of("convnet,width=2", [teacher], head="mixture", gain=0)
    written, _ = weightformer([teacher] * 4)
    assert close(written, {key: teacher[key] for key in written})


@each_form
def test_evaluation_is_deterministic_and_dropout_is_not(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers, dropout=0.5, **head)
    assert equal(weightformer(teachers)[0], weightformer(teachers)[0])
    weightformer.train()
    assert not equal(weightformer(teachers)[0], weightformer(teachers)[0])


@each_form
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_any_number_of_teachers_is_read(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
    count: int,
):
    teachers = teachers_of("convnet,width=2", 8)
    weightformer = generator_of("convnet,width=2", teachers[:2], **head)
    written, _ = weightformer(teachers[:count])
    assert all(torch.isfinite(tensor).all() for tensor in written.values())


def test_more_teachers_than_ids_are_refused(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("mlp,width=4", 3)
    weightformer = generator_of("mlp,width=4", teachers, max_teachers=2)
    message = "reads 1 to 2 teachers, but got 3; leave some out, or .* --max-teachers"
    with pytest.raises(InputError, match=message):
        weightformer(teachers)
    with pytest.raises(InputError, match="but got 0"):
        weightformer([])


def test_the_heads_must_divide_the_width(network_of: Callable[..., nn.Module]):
    spec = derive_token_spec(network_of("mlp,width=4"), SHAPE)
    with pytest.raises(InputError, match=r"but 30 is not one of 4; .* --width 128"):
        WeightFormer(WeightFormerConfig(width=30, heads=4), spec)


def test_tokens_are_standardised_per_layer_and_part(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers)
    stacked = torch.stack([state["conv2.weight"] for state in teachers])
    shifts = torch.stack([state["bn2.bias"] for state in teachers])
    mean = weightformer.get_buffer("mean_1")
    deviation = weightformer.get_buffer("deviation_1")
    assert mean.shape == (3 * 3 * 2 + 2,)
    torch.testing.assert_close(mean[:18], stacked.mean().expand(18))
    torch.testing.assert_close(deviation[:18], stacked.std(correction=0).expand(18))
    torch.testing.assert_close(mean[19], shifts.mean())


def test_a_part_that_is_constant_is_written_as_it_is(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("mlp,width=4")
    for state in teachers:
        state["fc.bias"].fill_(0.25)
    weightformer = generator_of("mlp,width=4", teachers, gain=1)
    written, _ = weightformer(teachers)
    assert (written["fc.bias"] - 0.25).abs().max() < 0.02
    assert (written["fc.weight"] - teachers[0]["fc.weight"]).abs().max() > 0.02


def test_centring_leaves_the_mean_over_channels_to_the_reference(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("mlp,width=4")
    weightformer = generator_of("mlp,width=4", teachers, centre=True)
    written, _ = weightformer(teachers)
    weight = written["fc.weight"]
    assert not torch.allclose(weight, teachers[0]["fc.weight"], atol=1e-2)
    torch.testing.assert_close(weight.mean(0), teachers[0]["fc.weight"].mean(0))


def test_tied_weights_are_written_under_all_their_names(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    images: Tensor,
):
    teachers = teachers_of("tied")
    written, _ = generator_of("tied", teachers)(teachers)
    assert written["again.weight"] is written["encode.weight"]
    network = network_of("tied")
    called = functional_call(network, written, (images,))
    network.load_state_dict(written)
    torch.testing.assert_close(network(images), called)
