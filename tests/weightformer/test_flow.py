"""What flows along a layer and from layer to layer: shifts and the cross token."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.states import State
from metaensemble.weightformer import WeightFormer
from tests.weightformer.forms import each_form, equal


@each_form
def test_without_a_shift_there_is_no_shift_loss(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers, **head)
    assert weightformer(teachers, shift=0)[1].item() == 0


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_the_shift_loss_of_a_generator_that_works_token_by_token_is_zero(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    shift: int,
):
    teachers = teachers_of("convnet,width=4")
    weightformer = generator_of("convnet,width=4", teachers)
    assert weightformer(teachers, shift)[1].item() > 1e-4  # generically not
    weightformer.blocks = nn.ModuleList()
    assert weightformer(teachers, shift)[1].item() > 1e-4  # the positions differ
    nn.init.zeros_(weightformer.position.weight)
    assert weightformer(teachers, shift)[1].item() < 1e-10


def test_the_shift_loss_leaves_out_layers_that_are_too_short(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("mlp,width=4")  # layers of 4, 4 and 3 channels
    weightformer = generator_of("mlp,width=4", teachers)
    assert weightformer(teachers, shift=3)[1].item() > 0
    assert weightformer(teachers, shift=4)[1].item() == 0


@each_form
def test_the_shift_does_not_change_what_is_written(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    head: dict[str, Any],
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers, **head)
    assert equal(weightformer(teachers, 0)[0], weightformer(teachers, 2)[0])


def written_with_flow_cut_after(
    weightformer: WeightFormer, teachers: Sequence[State], layer: int
) -> State:
    """Return what is written if the [cross] output of one layer becomes zero."""
    count = -1

    def cut(_: nn.Module, __: Any, flow: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(flow) if count == layer else flow

    handle = weightformer.cross_flow.register_forward_hook(cut)
    written, _ = weightformer(teachers)
    handle.remove()
    return written


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_cross_flow_out_of_a_layer_reaches_all_later_layers_and_no_earlier_one(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    layer: int,
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers)
    whole, _ = weightformer(teachers)
    cut = written_with_flow_cut_after(weightformer, teachers, layer)
    for number, spec in enumerate(weightformer.spec.layers):
        for part in spec.parts:
            same = torch.equal(whole[part.tensor], cut[part.tensor])
            assert same == (number <= layer), part.tensor


def test_what_a_layer_holds_reaches_later_layers_through_the_cross_token_alone(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("convnet,width=2")
    changed = [
        teachers[0],
        {**teachers[1], "conv2.weight": -teachers[1]["conv2.weight"]},
    ]
    for cross in (True, False):
        weightformer = generator_of("convnet,width=2", teachers, cross=cross)
        before, after = weightformer(teachers)[0], weightformer(changed)[0]
        assert torch.equal(before["conv1.weight"], after["conv1.weight"])
        assert not torch.equal(before["conv2.weight"], after["conv2.weight"])
        for key in ("conv3.weight", "conv4.weight", "fc.weight"):
            assert torch.equal(before[key], after[key]) is not cross


def test_without_cross_flow_its_output_is_not_read(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of("convnet,width=2")
    weightformer = generator_of("convnet,width=2", teachers, cross=False)
    whole, _ = weightformer(teachers)
    assert equal(whole, written_with_flow_cut_after(weightformer, teachers, 0))
