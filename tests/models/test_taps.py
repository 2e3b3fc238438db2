import pytest
import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models import init_model
from metaensemble.models.taps import (
    MAX_STAGES,
    Tap,
    as_map,
    named,
    pair_stages,
    penultimate,
    stages,
    tapped,
)

SHAPE = (3, 32, 32)
VIT = "vit_small_32x32,depth=6,dim=16,heads=2,mlp_dim=16"


def names(architecture, shape=SHAPE):
    return [str(tap) for tap in stages(init_model(architecture, 5, shape, 0), shape)]


def test_a_resnet_is_tapped_after_its_stages():
    network = init_model("resnet20,width=0.25", 5, SHAPE, 0)
    found = stages(network, SHAPE)
    assert [str(tap) for tap in found] == ["layer1", "layer2", "layer3"]
    assert [tap.height for tap in found] == [32, 16, 8]
    assert [tap.width for tap in found] == [32, 16, 8]
    assert [tap.channels for tap in found] == [4, 8, 16]


def test_a_plain_convolutional_network_is_tapped_before_each_change_of_size():
    network = init_model("convnet,width=4", 5, SHAPE, 0)
    sizes = [(tap.height, tap.width) for tap in stages(network, SHAPE)]
    assert len(sizes) == len(set(sizes)) > 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > (1, 1)


def test_tokens_are_tapped_after_evenly_spaced_blocks():
    network = init_model(VIT, 5, SHAPE, 0)
    found = stages(network, SHAPE)
    assert len(found) == MAX_STAGES
    blocks = [int("".join(c for c in t.module if c.isdigit())) for t in found]
    assert blocks == [1, 2, 4, 5]  # of 0 to 5: ceil(6 k / 4) - 1
    # the class token is left out: what remains is a square
    assert {(t.channels, t.height, t.width) for t in found} == {(16, 8, 8)}


def test_a_perceptron_is_tapped_at_its_hidden_layers():
    shape = (1, 8, 8)
    network = init_model("mlp,depth=2,width=7", 5, shape, 0)
    found = stages(network, shape)
    assert [(t.channels, t.height, t.width, t.side) for t in found] == [
        (7, 1, 1, "input")
    ] * 2
    assert found[-1] == penultimate(network, shape)


def test_a_deep_perceptron_has_at_most_four_stages():
    assert len(names("mlp,depth=9,width=3", (1, 8, 8))) == MAX_STAGES


def test_a_single_layer_has_no_inner_features():
    network = init_model("mlp,depth=0", 5, (1, 8, 8), 0)
    with pytest.raises(
        InputError, match=r"must have inner features .* has none; choose --method kd"
    ):
        stages(network, (1, 8, 8))


def test_a_network_that_does_not_end_in_a_linear_layer_has_no_vector():
    network = nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten())
    with pytest.raises(
        InputError, match=r"must end in a linear layer .* this Sequential has none"
    ):
        penultimate(network, SHAPE)


class Twice(nn.Module):
    """Calls one module three times, as networks do with their ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, inputs):
        first = self.relu(self.conv(inputs))
        second = self.relu(self.norm(first - 1))
        return self.head(self.relu(second - 0.1).mean((2, 3)))


def test_calls_of_one_module_are_told_apart():
    torch.manual_seed(0)
    network = Twice().eval()
    shape = (1, 4, 4)
    chosen = named(network, shape, ["relu", "relu#2", "<head", "<norm"], "its")
    assert [t.call for t in chosen] == [1, 2, 1, 1]
    assert [str(t) for t in chosen] == ["relu", "relu#2", "<head", "<norm"]
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    logits, (first, second, vector, before) = tapped(network, chosen, images)
    expected = network.conv(images).relu()
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, network.norm(expected - 1).relu())
    torch.testing.assert_close(before, expected - 1)
    assert vector.shape == (2, 2, 1, 1)
    torch.testing.assert_close(network.head(vector.flatten(1)), logits)
    assert torch.equal(logits, network(images))


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(
        InputError,
        match=r"must be one of a's, but there is no 'relu#4'; there are conv, relu, "
        r"norm, relu#2, relu#3, head$",
    ):
        named(Twice(), (1, 4, 4), ["relu#4"], "a's")


def test_looking_for_taps_changes_nothing():
    network = Twice().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages(network, (1, 4, 4))
    penultimate(network, (1, 4, 4))
    assert network.training
    assert network.conv.training
    assert not network.norm.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(m._forward_hooks for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_hooks_are_gone_after_a_failed_pass():
    network = Twice()
    chosen = stages(network, (1, 4, 4))
    with pytest.raises(RuntimeError):
        tapped(network, chosen, torch.zeros(1, 3, 4, 4))
    assert not any(m._forward_hooks for m in network.modules())


def test_gradients_flow_through_tapped_values():
    network = Twice().eval()
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    _, (value,) = tapped(network, named(network, (1, 4, 4), ["conv"], ""), images)
    value.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert network.conv.weight.grad is not None


def test_values_become_maps():
    maps = torch.rand(2, 3, 4, 5)
    assert as_map(maps) is maps
    assert as_map(torch.rand(2, 3)).shape == (2, 3, 1, 1)
    tokens = torch.arange(2 * 9 * 3.0).view(2, 9, 3)
    square = as_map(tokens)
    assert square.shape == (2, 3, 3, 3)
    assert torch.equal(square[1, :, 1, 2], tokens[1, 5])
    with_class = torch.cat([torch.full((2, 1, 3), -1.0), tokens], 1)
    assert torch.equal(as_map(with_class), square)
    column = as_map(torch.arange(2 * 7 * 3.0).view(2, 7, 3))
    assert column.shape == (2, 3, 7, 1)


def test_every_tap_has_the_shape_of_its_value():
    for architecture in ("resnet20,width=0.25", "convnet,width=4", VIT, "mlp,width=4"):
        network = init_model(architecture, 5, SHAPE, 0).eval()
        chosen = (*stages(network, SHAPE), penultimate(network, SHAPE))
        _, values = tapped(network, chosen, torch.zeros(2, *SHAPE))
        for tap, value in zip(chosen, values, strict=True):
            assert value.shape == (2, tap.channels, tap.height, tap.width)


def test_a_tap_in_a_network_of_tuples_is_the_first_of_them():
    class Pair(nn.Module):
        def forward(self, inputs):
            return 2 * inputs, None

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()
            self.head = nn.Linear(16, 3)

        def forward(self, inputs):
            return self.head(self.pair(inputs)[0].flatten(1))

    network = Network()
    images = torch.rand(2, 1, 4, 4)
    chosen = named(network, (1, 4, 4), ["pair"], "")
    _, (value,) = tapped(network, chosen, images)
    assert torch.equal(value, 2 * images)


def tap(height):
    return Tap(f"of {height}", 1, "output", 4, height, height)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((32, 16, 8), (32, 16, 8), [(0, 0), (1, 1), (2, 2)]),
        # the resolutions decide
        ((16, 8), (32, 16, 8), [(0, 1), (1, 2)]),
        ((32, 16, 8), (16, 8), [(1, 0), (2, 1)]),
        # the last belong together whatever their sizes
        ((32,), (32, 16, 8), [(0, 2)]),
        # of equal ones the later: it has seen more
        ((8, 8), (8, 8, 8, 8), [(0, 2), (1, 3)]),
        # the order is kept
        ((8, 32), (32, 16, 8), [(0, 1), (1, 2)]),
        ((1, 1), (32, 16, 8), [(0, 1), (1, 2)]),
    ],
)
def test_stages_are_paired_by_resolution_in_order(student, teacher, expected):
    own, theirs = [tap(h) for h in student], [tap(h) for h in teacher]
    assert pair_stages(own, theirs) == expected
    swapped = [(j, i) for i, j in expected]
    assert pair_stages(theirs, own) == swapped
