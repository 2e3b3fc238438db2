"""Properties that any generator of weights must have, whatever it has learnt."""

from collections.abc import Callable, Sequence
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

SHAPE = (1, 8, 8)
VIT = "vit_small_32x32,depth=2,dim=8,heads=2,mlp_dim=4"
NETWORKS = ("mlp,width=4", "convnet,width=2", VIT, "separable", "lone", "tied")
HEADS: tuple[dict[str, Any], ...] = (
    {"head": "direct"},
    {"head": "residual", "reference": "first"},
    {"head": "residual", "reference": "mean", "centre": True},
    {"head": "mixture"},
)
FORMS: tuple[dict[str, Any], ...] = (
    *HEADS,
    {"head": "residual", "reference": "mean", "readout": "pooled"},
    {"head": "residual", "reference": "first", "attention": "axial"},
    {"head": "mixture", "readout": "pooled", "attention": "axial"},
)
each_network = pytest.mark.parametrize("name", NETWORKS)
each_head = pytest.mark.parametrize(
    "head", HEADS, ids=["direct", "first", "mean", "mixture"]
)
each_form = pytest.mark.parametrize(
    "head",
    FORMS,
    ids=["direct", "first", "mean", "mixture", "pooled", "axial", "axial-pooled"],
)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, *SHAPE, generator=generator("images"))


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def close(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5)
        for name in first
    )


def tie_ids(weightformer: WeightFormer, first: int) -> None:
    """Give all teachers from number `first` on one id."""
    with torch.no_grad():
        ids = weightformer.model_id.weight
        ids[first:] = ids[first]


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
