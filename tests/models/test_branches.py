import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.models import Architecture, build, init_model
from metaensemble.models.branches import Branched, cut
from metaensemble.models.gated import Gate, gated, pooled
from metaensemble.models.taps import penultimate

SHAPE = (3, 8, 8)
VIT = "vit_small_32x32,depth=3,dim=16,heads=2,mlp_dim=16"


def images(count: int = 4, size: int = 8) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=random)


@pytest.mark.parametrize(
    ("architecture", "size", "value", "first_of_head"),
    [
        ("convnet,width=4", 8, (8, 4, 4), "conv4.weight"),
        ("convnet,width=4", 32, (8, 8, 8), "conv4.weight"),
        ("resnet20,width=0.25", 8, (8, 4, 4), "layer3.0.conv1.weight"),
        ("wrn16_1", 8, (32, 4, 4), "layer3.0.conv1.weight"),
        ("mobilenet_v2,width=0.25", 32, (144, 8, 8), "features.14.conv.1.0.weight"),
        (VIT, 8, (5, 16), "encoder.layers.encoder_layer_2.ln_1.weight"),
        ("mlp,width=8", 8, (8,), "hidden.2.weight"),
        ("mlp,width=8,depth=1", 8, (8,), "fc.weight"),
        ("mlp,width=8,depth=4", 8, (8,), "hidden.6.weight"),
    ],
)
def test_networks_are_cut_before_their_last_stage(
    architecture, size, value, first_of_head
):
    network = init_model(architecture, 5, (3, size, size), 0).eval()
    trunk, head = cut(network, (3, size, size))
    inputs = images(size=size)
    with torch.no_grad():
        between = trunk(inputs)
        assert torch.equal(head(between), network(inputs))
    assert between.shape[1:] == value
    names = [name for name, _ in head.named_parameters()]
    assert names[0] == first_of_head
    state = network.state_dict()
    before, after = trunk.state_dict(), head.state_dict()
    assert not before.keys() & after.keys()
    assert {**before, **after}.keys() == state.keys()
    for name, tensor in {**before, **after}.items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() != state[name].data_ptr()


def test_the_head_is_the_last_stage_and_nothing_else():
    network = init_model("resnet20,width=0.25", 5, SHAPE, 0)
    _, head = cut(network, SHAPE)
    stages = {name.split(".")[0] for name, _ in head.named_parameters()}
    assert stages == {"layer3", "fc"}


def test_branches_are_plain_networks_on_the_trunk_of_the_first():
    networks = [init_model("convnet,width=4", 5, SHAPE, seed) for seed in (0, 1)]
    before = copy.deepcopy(networks[1].state_dict())
    body = Branched(networks, SHAPE).eval()
    with torch.no_grad():
        value, logits = body(images())
        assert logits.shape == (2, 4, 5)
        for i, expected in enumerate(logits):
            assert torch.equal(body.branches[i](value), expected)
            assert torch.equal(body.plain(i).eval()(images()), expected)
    one, two = body.plain(0).state_dict(), body.plain(1).state_dict()
    assert list(one) == list(two) == list(before)
    for name in before:
        source = networks[1 if name.startswith(("conv4", "bn4", "fc")) else 0]
        assert torch.equal(two[name], source.state_dict()[name])
    for name, tensor in networks[1].state_dict().items():
        assert torch.equal(tensor, before[name])
    plain = body.plain(0)
    with torch.no_grad():
        for tensor in body.state_dict().values():
            tensor.zero_()
    assert plain.get_parameter("conv1.weight").any()


def test_layers_keep_their_modes():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.Flatten()
    )
    body = Branched([network, copy.deepcopy(network)], SHAPE)
    assert not torch.equal(body(images())[1][0], body(images())[1][0])
    body.eval()
    assert torch.equal(body(images())[1][0], network.eval()(images()))
    assert body.training is False


class Stranger(nn.Module):
    """A network whose forward does what the test is about."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(192, 8), nn.Linear(8, 8)
        self.three = nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.one(inputs.flatten(1))
        if self.kind == "branching" and x.sum() > 0:
            x = -x
        if self.kind == "mode":
            x = F.dropout(x, training=self.training)
        if self.kind == "skip":
            return self.three(self.two(x)) + x[:, :5]
        x = self.two(self.two(x)) if self.kind == "tied" else self.two(x)
        if self.kind == "all tied":
            return self.one(F.pad(self.two(x), (0, 184)))
        return self.three(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Stranger("branching"), r"must be traceable by torch.fx .* Stranger is not \("),
        (Stranger("mode"), "leave what differs .* Stranger looks at its mode; choose"),
        (Stranger("all tied"), "two layers, and a value between .* Stranger has none;"),
        (build("mlp,depth=0", 5, SHAPE), "this MLP has none; choose another arch"),
        (nn.Flatten(), "this Flatten has none"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused(network, message):
    with pytest.raises(InputError, match=message):
        cut(network, SHAPE)


def test_a_layer_that_is_used_twice_stays_on_one_side():
    trunk, head = cut(Stranger("tied"), SHAPE)
    assert {name.split(".")[0] for name in trunk.state_dict()} == {"one"}
    assert {name.split(".")[0] for name in head.state_dict()} == {"two", "three"}


def test_nothing_flows_past_the_cut():
    network = Stranger("skip")
    trunk, head = cut(network, SHAPE)
    assert {name.split(".")[0] for name in trunk.state_dict()} == {"one"}
    assert torch.equal(head(trunk(images())), network(images()))


class Draws(nn.Module):
    """A layer of a stranger that looks at its mode, as layers may."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        return inputs if inputs.sum() > 0 else -inputs


def test_layers_of_strangers_stay_whole():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), Draws(), nn.Linear(8, 5)
    ).eval()
    trunk, head = cut(network, SHAPE)
    assert torch.equal(head(trunk(images())), network(images()))


def test_values_are_pooled_over_their_positions():
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    torch.testing.assert_close(pooled(maps), torch.tensor([[5.5, 17.5]]))
    tokens = maps[0]  # two images of three tokens with four channels
    torch.testing.assert_close(pooled(tokens)[0], torch.tensor([4.0, 5, 6, 7]))
    vectors = torch.randn(2, 5)
    assert pooled(vectors) is vectors


def test_the_gate_takes_one_image_as_evaluation_does():
    torch.manual_seed(0)
    gate = Gate(5, 3)
    gate(torch.randn(8, 5))
    mean = gate.norm.running_mean
    assert mean is not None
    before, image = mean.clone(), torch.randn(1, 5)
    said = gate(image)
    assert torch.equal(mean, before)
    assert torch.equal(gate.eval()(image), said)


@pytest.mark.parametrize("architecture", ["convnet,width=4", "mlp,width=8", VIT])
def test_the_field_branches_makes_a_gated_network(architecture):
    text = f"{architecture},branches=3"
    network = init_model(text, 5, SHAPE, 0).eval().requires_grad_(False)
    assert network(images()).shape == (4, 5)
    again = init_model(text, 5, SHAPE, 1)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval().requires_grad_(False)(images()), network(images()))
    state = network.state_dict()
    assert {name.split(".")[0] for name in state} == {"trunk", "branches", "gate"}
    heads = [v for k, v in state.items() if k.startswith("branches.0") and v.ndim > 1]
    other = [v for k, v in state.items() if k.startswith("branches.1") and v.ndim > 1]
    assert not torch.equal(heads[0], other[0])
    # features of the network are those of its last branch, not the gate's
    assert penultimate(network, SHAPE).module.startswith("branches.2.")


def test_a_gated_network_of_one_network_is_that_network():
    one = init_model("convnet,width=4", 5, SHAPE, 0)
    network = gated([one, one, one], SHAPE).eval()
    torch.testing.assert_close(network(images()), one.eval()(images()))


def test_the_fields_come_last_branches_before_slim():
    spelled = Architecture.parse("mlp,slim=gate.linear:8>3,branches=3,width=8")
    assert str(spelled) == "mlp,width=8,branches=3,slim=gate.linear:8>3"
    assert str(spelled.full) == "mlp,width=8,branches=3"
    assert str(spelled.plain) == "mlp,width=8"
    assert str(spelled.plain.branched(2)) == "mlp,width=8,branches=2"
    assert str(spelled.full.branched(2)) == "mlp,width=8,branches=2"


@pytest.mark.parametrize("count", ["1", "0", "-3", "2.5", "true", "many"])
def test_branches_are_two_or_more(count):
    with pytest.raises(InputError, match="branches must be a whole number of at least"):
        build(f"mlp,branches={count}", 5, SHAPE)
