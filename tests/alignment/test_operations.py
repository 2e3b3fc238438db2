"""Rules that the networks of `conftest` do not need: each proved on a tiny network."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.alignment import derive_permutations, prove


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(
        self,
        forward: Callable[..., Tensor],
        parameters: dict[str, tuple[int, ...]] | None = None,
        **layers: nn.Module,
    ):
        super().__init__()
        self.computes = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, shape in (parameters or {}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, images: Tensor) -> Tensor:
        return self.computes(self, images)


def gated(net, x):
    left, right = net.first(x.flatten(1)).chunk(2, dim=-1)
    return net.head(left * right.sigmoid())


def functional(net, x):
    x = F.conv2d(x, net.kernel, padding=1)
    x = F.batch_norm(x, net.mean.detach(), net.var.square() + 1, net.scale, net.shift)
    x = F.max_pool2d(F.relu(input=x), 2)
    x = F.layer_norm(x.mean((2, 3)), (5,), net.scale, net.shift)
    return F.linear(x, net.matrix, bias=net.bias)


def transposed(net, x):
    x = F.silu(net.up(net.conv(x)))
    x = F.interpolate(x, scale_factor=0.5)
    return net.head(x.flatten(1))


def tokens_flattened(net, x):
    x = net.embed(x[:, 0])  # (batch, 4 rows, 6)
    return net.head(F.relu(x.reshape(x.shape[0], -1)))


def padded(net, x):
    x = F.pad(net.conv(x), (0, 0, 0, 0, 2, 1))
    return net.head((x + net.shift.view(-1, 1, 1)).mean((-2, -1)))


def strided_channels(net, x):
    x = net.conv(x)
    return net.head(torch.cat([x[:, ::2], x[:, 1:3]], 1).amax((2, 3)))


def stacked(net, x):
    x = net.conv(x)
    return net.head(torch.stack([x, x.square()], 1).sum(1).mean((2, 3)))


def in_place(net, x):
    x = net.conv(x)
    x.add_(1).relu_()
    x *= 2
    return net.head(net.second(x).relu_().mean((2, 3)))


def regrouped(net, x):
    x = net.conv(x)
    x = x.unflatten(1, (2, 3)).mean(2)
    return net.head(x.mean((2, 3)))


def attentive(net, x):
    rows = net.embed(x[:, 0])
    pooled, weights = net.pool(net.query.expand(len_of(rows), 2, 4), rows, rows)
    return net.head((pooled * weights.sum(-1, keepdim=True)).mean(1))


def len_of(x):
    return x.shape[0]


def encoder(net, x):
    return net.head(net.layer(net.embed(x[:, 0])).mean(1))


def embedded(net, x):
    x = net.first(x.flatten(1)) + net.table(torch.zeros(1, dtype=torch.int64))
    return net.head(F.relu(x))


def spatial_mixing(net, x):
    x = net.conv(x).flatten(2)  # (batch, 6, 16)
    x = net.mix(F.gelu(net.norm(x)))  # over positions
    return net.head((x.transpose(1, 2) * 2).mean(1))


SHAPE = (1, 4, 4)
NETS: dict[str, tuple[Net, set[int]]] = {
    "gated": (Net(gated, first=nn.Linear(16, 12), head=nn.Linear(6, 3)), {6}),
    "functional": (
        Net(
            functional,
            {
                "kernel": (5, 1, 3, 3),
                **dict.fromkeys(("mean", "var", "scale", "shift"), (5,)),
                "matrix": (3, 5),
                "bias": (3,),
            },
        ),
        {5},
    ),
    "transposed": (
        Net(
            transposed,
            conv=nn.Conv2d(1, 5, 3),
            up=nn.ConvTranspose2d(5, 6, 2, 2),
            head=nn.Linear(24, 3),
        ),
        {5, 6},
    ),
    "tokens_flattened": (
        Net(tokens_flattened, embed=nn.Linear(4, 6), head=nn.Linear(24, 3)),
        {6},
    ),
    "padded": (
        Net(padded, {"shift": (9,)}, conv=nn.Conv2d(1, 6, 3), head=nn.Linear(9, 3)),
        {2, 6},
    ),
    "strided_channels": (
        Net(strided_channels, conv=nn.Conv2d(1, 6, 3), head=nn.Linear(5, 3)),
        set(),
    ),
    "stacked": (
        Net(stacked, conv=nn.Conv2d(1, 6, 3), head=nn.Linear(6, 3)),
        set(),
    ),
    "in_place": (
        Net(
            in_place,
            conv=nn.Conv2d(1, 6, 3),
            second=nn.Conv2d(6, 5, 1),
            head=nn.Linear(5, 3),
        ),
        {5, 6},
    ),
    "regrouped": (
        Net(regrouped, conv=nn.Conv2d(1, 6, 3), head=nn.Linear(2, 3)),
        {2},
    ),
    "attentive": (
        Net(
            attentive,
            {"query": (1, 2, 4)},
            embed=nn.Linear(4, 6),
            pool=nn.MultiheadAttention(
                4, 2, kdim=6, vdim=6, batch_first=True, add_bias_kv=True
            ),
            head=nn.Linear(4, 3),
        ),
        {4, 6, 8},
    ),
    "encoder": (
        Net(
            encoder,
            embed=nn.Linear(4, 8),
            layer=nn.TransformerEncoderLayer(8, 2, 5, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        set(),
    ),
    "embedded": (
        Net(
            embedded,
            first=nn.Linear(16, 6),
            table=nn.Embedding(2, 6),
            head=nn.Linear(6, 3),
        ),
        {6},
    ),
    "spatial_mixing": (
        Net(
            spatial_mixing,
            conv=nn.Conv2d(1, 6, 1),
            norm=nn.BatchNorm1d(6),
            mix=nn.Linear(16, 7),
            head=nn.Linear(6, 3),
        ),
        {6, 7},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_rule_is_right_and_leaves_the_freedom_there_is(name):
    network, sizes = NETS[name]
    spec = derive_permutations(network, SHAPE)
    prove(network, spec, SHAPE)
    assert {group.size for group in spec.groups} == sizes
    if not sizes:
        assert any(
            "has no rule" in why
            or "number" in why
            or "constant" in why
            or "order" in why
            for _, why in spec.frozen
        )
