import pytest
import torch
from torch import Tensor, nn

from metaensemble.merging.channels import (
    LARGEST_FACTOR,
    Layer,
    Moments,
    correction,
    find_layers,
    mean_statistics,
    measure_channels,
    set_channels,
)


class Mixed(nn.Module):
    """Every case at once: norms of all kinds, no bias, a twin, a layer run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, groups=2)
        self.gn = nn.GroupNorm(2, 6)
        self.scaled = nn.Linear(6, 8, bias=False)
        self.ln = nn.LayerNorm(8)
        self.twice = nn.Linear(8, 8)
        self.plain = nn.Linear(8, 8)
        self.twin = nn.Linear(8, 8)
        self.twin.weight = self.plain.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv(images)))
        x = torch.relu_(self.gn(self.grouped(x))).flatten(2).transpose(1, 2)
        x = torch.relu(self.ln(self.scaled(x)))
        x = self.twice(torch.relu(self.twice(x)))
        x = x + self.twin(torch.relu_(self.plain(x)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.relu(self.last(x).mean(1)))


def mixed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = Mixed().eval()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running" not in key:
            tensor += 0.2 * torch.rand_like(tensor)
    return network


def test_layers_are_found_by_running():
    found = find_layers(mixed(0), torch.randn(4, 1, 8, 8))
    assert found.layers == (
        Layer("bn", True),
        Layer("grouped", True),
        Layer("scaled", False),
        Layer("last", True),
    )
    assert found.notes == (
        "not repaired: twice, which runs more than once",
        "not repaired: plain, twin, which has no weight of its own",
        "not repaired: attention.out_proj, unused, which does not run by itself",
        "repaired in deviation only, without bias: scaled",
    )


def test_a_layer_before_an_activation_in_place_is_not_taken_for_absorbed():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(inplace=True), nn.BatchNorm1d(4), nn.Linear(4, 2)
    ).eval()
    found = find_layers(network, torch.randn(5, 4))
    assert [layer.name for layer in found.layers] == ["0", "2"]


def test_what_a_batch_norm_normalises_needs_nothing():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)
    ).eval()
    assert find_layers(network, torch.randn(5, 4)).layers == ()


def test_weight_that_is_computed_is_left():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    network = nn.Sequential(normed, nn.ReLU(), nn.Linear(4, 2)).eval()
    found = find_layers(network, torch.randn(5, 4))
    assert found.layers == ()
    assert found.notes == ("not repaired: 0, which has no weight of its own",)


def test_every_kind_of_layer_reaches_its_goals():
    images = torch.randn(40, 1, 8, 8)
    networks = [mixed(seed) for seed in range(3)]
    network = mixed(3)
    names = list(network.state_dict())
    layers = find_layers(network, images).layers
    goals = mean_statistics([measure_channels(n, layers, [images]) for n in networks])
    untouched = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    set_channels(network, layers, [images], goals)
    reached = measure_channels(network, layers, [images])
    for layer in layers:
        mean, deviation = reached[layer.name].overall()
        wanted_mean, wanted = goals[layer.name].overall()
        torch.testing.assert_close(deviation, wanted, rtol=2e-2, atol=1e-4)
        if layer.shifts:
            torch.testing.assert_close(mean, wanted_mean, rtol=2e-2, atol=2e-2)
    state = network.state_dict()
    assert list(state) == names
    changed = {
        key.split(".")[0] for key in names if (state[key] != untouched[key]).any()
    }
    assert changed == {"bn", "grouped", "scaled", "last"}
    assert not any(module.training for module in network.modules())
    assert network.get_submodule("bn").momentum == 0.1


def test_a_network_that_has_its_goals_stays_however_many_batches():
    batches = list(torch.randn(90, 1, 8, 8).split(30))
    network = mixed(0)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    layers = find_layers(network, batches[0]).layers
    set_channels(network, layers, batches, measure_channels(network, layers, batches))
    after = network.state_dict()
    for layer in layers[1:]:  # the first is a batch norm of other running statistics
        for key in (f"{layer.name}.weight", f"{layer.name}.bias"):
            if key in before:
                torch.testing.assert_close(
                    after[key], before[key], rtol=1e-3, atol=1e-5
                )


def test_several_batches_nearly_reach_the_goals():
    images = torch.randn(400, 1, 8, 8)
    networks, network = [mixed(0), mixed(1)], mixed(2)
    layers = find_layers(network, images[:2]).layers
    batches = list(images.split(100))
    goals = mean_statistics([measure_channels(n, layers, batches) for n in networks])
    set_channels(network, layers, batches, goals)
    reached = measure_channels(network, layers, batches)
    for layer in layers:
        _, deviation = reached[layer.name].overall()
        wanted = goals[layer.name].overall()[1]
        torch.testing.assert_close(deviation, wanted, rtol=0.1, atol=1e-3)


def test_moments_by_hand():
    moments = Moments()
    moments.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), -1)
    moments.add(torch.tensor([[[4.0], [1.0]], [[4.0], [1.0]]]), 1)
    mean, deviation = moments.overall()
    assert mean.tolist() == [2.5, 1.0]
    assert deviation.tolist() == pytest.approx([0.5**0.5, 0.0])


def test_constant_channels_are_not_blown_up():
    wanted = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0])
    deviation = torch.tensor([1.0, 0.0, 1e-3, 1.0, 0.5])
    mean = torch.zeros(5)
    factors = correction(wanted, deviation, mean)
    assert factors.tolist() == [1.0, 1.0, LARGEST_FACTOR, 0.0, 4.0]
    nothing = correction(wanted, torch.zeros(5), mean)
    assert nothing.tolist() == [1.0] * 5
