import pytest
import torch
from torch import Tensor, nn

from metaensemble.methods.budget import macs_model, parameters_model
from metaensemble.methods.compaction import Channels, compact, folded, gated, prunable
from metaensemble.metrics import macs, parameters
from metaensemble.models import init_model

SHAPE = (3, 8, 8)
NETWORKS = [
    "mlp,width=8",
    "mlp,batchnorm=true,width=8",
    "convnet,width=4",
    "resnet20,width=0.25",
    "resnet20,shortcut=B,width=0.25",
    "wrn16_1",
    "mobilenet_v2,width=0.125",
    "vit_small_32x32,dim=12,depth=1,mlp_dim=8",
]


def noisy(architecture: str) -> nn.Module:
    """A network in eval mode in which no tensor is zero or one."""
    network = init_model(architecture, 5, SHAPE, 0).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.3 * torch.rand(tensor.shape, generator=random)
    return network


def images() -> Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))


def some(channels: Channels, fraction: float = 0.6) -> Tensor:
    """A random part of the channels, the first of each group among them."""
    random = torch.Generator().manual_seed(3)
    live = torch.rand(channels.count, generator=random) < fraction
    for part in live.split(channels.sizes):
        part[0] = True
    return live


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_cost_model_is_the_exact_counter(architecture):
    network = noisy(architecture)
    channels = prunable(network, SHAPE)
    live = some(channels)
    small, _ = compact(network, channels, live)
    counts = channels.totals(live.double())
    costs = macs_model(network, channels, SHAPE), parameters_model(network, channels)
    assert float(costs[0](counts)) == macs(small, SHAPE)
    assert float(costs[1](counts)) == parameters(small)
    assert (costs[0].full, costs[1].full) == (macs(network, SHAPE), parameters(network))
    # a channel less saves what the model says it saves
    for model in costs:
        for group, saved in enumerate(model.savings(counts)):
            fewer = counts.clone()
            fewer[group] -= 1
            assert float(model(counts) - model(fewer)) == pytest.approx(float(saved))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_gate_of_zero_is_a_channel_taken_out(architecture):
    network = noisy(architecture)
    channels = prunable(network, SHAPE)
    live = some(channels)
    gates = torch.rand(channels.count) * live
    with torch.no_grad():
        with gated(network, channels, gates):
            expected = network(images())
        whole = folded(network, channels, gates)
        small, _ = compact(whole, channels, live)
        torch.testing.assert_close(whole(images()), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small(images()), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(images()), expected)  # left as it was
    assert set(small.state_dict()) == set(network.state_dict())


@pytest.mark.parametrize(
    ("architecture", "channel_maker"),
    [
        ("convnet,width=4", "conv2"),
        ("resnet20,width=0.25", "layer1.0.conv1"),
        ("resnet20,width=0.25", "conv1"),  # a stream of residual additions
        ("wrn16_1", "layer2.0.conv2"),
        ("mobilenet_v2,width=0.125", "features.2.conv.0.0"),  # through a depthwise
        ("mobilenet_v2,width=0.125", "features.0.0"),  # a stream again
        ("mlp,batchnorm=true,width=8", "hidden.0"),
    ],
)
def test_channels_that_batch_norm_silences_leave_no_trace(architecture, channel_maker):
    network = noisy(architecture)
    channels = prunable(network, SHAPE)
    group = channels.names.index(channel_maker)
    start = sum(channels.sizes[:group])
    live = torch.ones(channels.count, dtype=torch.bool)
    live[start : start + channels.sizes[group] // 2] = False
    norms = 0
    for name, layer in channels.layers.items():
        module = network.get_submodule(name)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            silent = (layer.outputs >= 0) & ~live[layer.outputs.clamp_min(0)]
            norms += bool(silent.any())
            with torch.no_grad():
                module.weight[silent] = 0
                module.bias[silent] = 0
    assert norms >= (2 if "mobilenet" in architecture else 1)
    small, changed = compact(network, channels, live)
    assert changed
    assert parameters(small) < parameters(network)
    with torch.no_grad():
        torch.testing.assert_close(
            small(images()), network(images()), rtol=1e-4, atol=1e-5
        )


def test_depthwise_convolutions_go_with_the_channels_they_filter():
    channels = prunable(noisy("mobilenet_v2,width=0.125"), SHAPE)
    assert channels.whole == ()
    layer = channels.layers["features.2.conv.1.0"]  # the depthwise one
    before = channels.layers["features.2.conv.0.0"]
    after = channels.layers["features.2.conv.2"]
    assert torch.equal(layer.inputs, layer.outputs)
    assert torch.equal(layer.inputs, before.outputs)
    assert torch.equal(layer.inputs, after.inputs)
    assert (layer.reads, before.reads, after.reads) == (False, True, True)


def test_what_cannot_be_narrowed_stays_whole():
    padded = prunable(noisy("resnet20,width=0.25"), SHAPE)
    assert padded.whole == ("layer2.0.conv2", "layer3.0.conv2")  # padded with zeros
    assert prunable(noisy("resnet20,shortcut=B,width=0.25"), SHAPE).whole == ()
    transformer = prunable(noisy(NETWORKS[-1]), SHAPE)
    assert transformer.names == ("encoder.layers.encoder_layer_0.mlp.0",)
    assert "conv_proj" in transformer.whole  # layer norms see all of the stream
    linear = prunable(noisy("mlp,depth=0"), SHAPE)
    assert (linear.count, linear.whole) == (0, ())


class Grouped(nn.Module):
    """A convolution of four groups, two inputs and three outputs each; tied layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = nn.Conv2d(8, 12, 1, groups=4)
        self.last = nn.Linear(12 * 64, 6)
        self.again = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.again.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x).relu()).relu()
        x = self.last(x.flatten(1)).relu()
        return self.head(self.tied(self.again(x).relu()).relu())


def test_groups_of_a_convolution_leave_as_wholes():
    torch.manual_seed(0)
    network = Grouped().eval()
    channels = prunable(network, SHAPE)
    assert channels.names == ("first",)
    assert channels.sizes == (4,)  # pairs of channels
    assert channels.whole  # of the tied layers
    live = torch.tensor([True, False, True, True])
    small, changed = compact(network, channels, live)
    assert changed == {"first": (3, 6), "middle": (6, 9), "last": (9 * 64, 6)}
    for model, count in (
        (macs_model(network, channels, SHAPE), macs(small, SHAPE)),
        (parameters_model(network, channels), parameters(small)),
    ):
        assert float(model(torch.tensor([3.0]))) == count
    with torch.no_grad(), gated(network, channels, live.float()):
        torch.testing.assert_close(small(images()), network(images()))
