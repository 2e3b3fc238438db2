"""What is tied to what, what is frozen, and what the errors say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.alignment import (
    Axis,
    PermutationSpec,
    derive_permutations,
    prove,
)
from metaensemble.core.errors import InputError


def axes_of(spec: PermutationSpec, name: str) -> dict[tuple[str, int], Axis]:
    return {(axis.tensor, axis.dim): axis for axis in spec.group(name).axes}


def test_running_statistics_move_along_as_statistics(case_of):
    axes = axes_of(case_of("convnet,width=4").spec, "conv1")
    statistics = {tensor for (tensor, _), axis in axes.items() if axis.statistic}
    assert statistics == {"bn1.running_mean", "bn1.running_var"}
    assert ("conv2.weight", 1) in axes


def test_a_flatten_gives_every_channel_its_positions(case_of):
    axes = axes_of(case_of("flattening").spec, "4")
    assert axes["9.weight", 1] == Axis(tensor="9.weight", dim=1, span=4, count=8)


def test_a_concatenation_sets_channels_off(case_of):
    axes = axes_of(case_of("dense").spec, "second")
    assert axes["third.weight", 1].offset == 3 + 4
    assert axes["head.weight", 1].count == 5


def test_a_residual_stream_is_one_group(case_of):
    spec = case_of("resnet20,width=0.5,shortcut=B").spec
    axes = axes_of(spec, "conv1")
    assert ("layer1.2.conv2.weight", 0) in axes
    assert ("layer2.0.downsample.0.weight", 1) in axes
    assert len(spec.groups) == 3 + 9


def test_zero_padded_shortcuts_tie_the_first_channels_of_later_stages(case_of):
    spec = case_of("resnet20,width=0.5").spec
    stem = axes_of(spec, "conv1")["fc.weight", 1]
    second = axes_of(spec, "layer2.0.conv2")["fc.weight", 1]
    third = axes_of(spec, "layer3.0.conv2")["fc.weight", 1]
    assert [(a.offset, a.count) for a in (stem, second, third)] == [
        (0, 8),
        (8, 8),
        (16, 16),
    ]


def test_heads_move_as_blocks_and_channels_inside_them(case_of):
    spec = case_of("vit_small_32x32,depth=1,dim=24,mlp_dim=16").spec
    name = "encoder.layers.encoder_layer_0.self_attention"
    group = spec.group(name)
    assert (group.size, group.heads, group.parts) == (48, 3, 2)
    firsts = {(a.tensor, a.offset): a.first for a in group.axes}
    assert firsts[f"{name}.in_proj_weight", 24] == 0
    assert firsts[f"{name}.in_proj_weight", 48] == 24
    assert ("encoder.pos_embedding", 2) in axes_of(spec, "conv_proj")


def test_what_has_no_rule_is_frozen_and_named(case_of):
    spec = case_of("sorting").spec
    assert {group.name for group in spec.groups} == {"first", "third"}
    frozen = dict(spec.frozen)
    assert frozen["bilinear"].startswith("Bilinear has no rule")
    assert frozen["cumsum"].startswith("cumsum has no rule")


def test_plain_networks_freeze_only_images_and_classes(case_of):
    for name in ("mlp,width=8", "resnet20,width=0.5", "squeezing", "bottlenecks"):
        assert {why for _, why in case_of(name).spec.frozen} == {
            "belongs to the images",
            "belongs to the classes",
        }


def test_what_is_not_used_is_named(case_of):
    frozen = dict(case_of("tied").spec.frozen)
    assert frozen["unused.weight"] == "is not used on the way to the logits"


class Constant(nn.Module):
    """Channels multiplied by numbers that no state dict holds."""

    hidden: Tensor

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 5)
        self.register_buffer("hidden", torch.rand(5), persistent=False)
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images.flatten(1))) * torch.tensor([1.0, 2, 3, 4, 5])
        return self.head(F.relu(self.second(x)) * self.hidden)


def test_constants_freeze_what_they_meet():
    network = Constant()
    before = set(vars(network))
    spec = derive_permutations(network, (1, 2, 2))
    assert spec.groups == ()
    assert set(vars(network)) == before
    prove(network, spec, (1, 2, 2))


def test_deriving_leaves_the_network_as_it_is(case_of):
    network = case_of("convnet,width=4").network
    network.train()
    network.get_submodule("bn1").eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    spec = derive_permutations(network, (3, 8, 8))
    prove(network, spec, (3, 8, 8))
    assert network.training
    assert not network.get_submodule("bn1").training
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    network.eval()


@pytest.mark.parametrize("tensor", ["bn2.running_var", "bn2.bias", "conv3.weight"])
def test_the_proof_names_a_group_that_lacks_an_axis(case_of, tensor):
    case = case_of("convnet,width=4")
    broken = tuple(
        group.model_copy(
            update={"axes": tuple(a for a in group.axes if a.tensor != tensor)}
        )
        if group.name == "conv2"
        else group
        for group in case.spec.groups
    )
    with pytest.raises(InputError, match="these groups do: conv2; correct their axes"):
        prove(case.network, PermutationSpec(groups=broken), case.shape)


def test_the_proof_names_a_group_that_changes_nothing(case_of):
    case = case_of("convnet,width=4")
    group = case.spec.groups[0]
    statistics = tuple(
        axis.model_copy(update={"tensor": "fc.bias", "count": 2})
        for axis in group.axes[:1]
    )
    idle = group.model_copy(update={"size": 2, "axes": statistics})
    broken = PermutationSpec(groups=(idle,))
    with pytest.raises(InputError, match="these groups do: conv1"):
        prove(case.network, broken, case.shape)
    none = PermutationSpec(groups=(group.model_copy(update={"axes": ()}),))
    with pytest.raises(InputError, match="'conv1' changes none; leave it out"):
        prove(case.network, none, case.shape)


def test_the_proof_needs_logits():
    with pytest.raises(InputError, match="returned a tuple; wrap it"):
        prove(Pair(), PermutationSpec(groups=()), (1, 2, 2))


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


def test_without_freezes_and_names(case_of):
    spec = case_of("convnet,width=4").spec
    less = spec.without(["conv2"], "as the user wished")
    assert len(less.groups) == len(spec.groups) - 1
    assert less.frozen[-1] == ("conv2", "as the user wished")


def test_a_spec_survives_json(case_of):
    spec = case_of("vit_small_32x32,depth=1,dim=24,mlp_dim=16").spec
    assert PermutationSpec.model_validate_json(spec.model_dump_json()) == spec
