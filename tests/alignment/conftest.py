"""Networks of every kind that the derivation must understand, tiny."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.alignment import PermutationSpec, derive_permutations
from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import State
from metaensemble.models import build

CLASSES = 3


def conv_bn(fan_in: int, fan_out: int, size: int = 3, **fields: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, size, padding=size // 2, bias=False, **fields),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(),
    )


class Biasless(nn.Sequential):
    """An MLP of weights alone."""

    def __init__(self):
        super().__init__(
            nn.Flatten(),
            nn.Linear(192, 9, bias=False),
            nn.ReLU(),
            nn.Linear(9, 7, bias=False),
            nn.Tanh(),
            nn.Linear(7, CLASSES, bias=False),
        )


class Flattening(nn.Sequential):
    """A VGG whose linear head sees 2x2 positions per channel."""

    def __init__(self):
        super().__init__(
            *conv_bn(3, 6),
            nn.MaxPool2d(2),
            *conv_bn(6, 8),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(10, CLASSES),
        )


class Bottlenecks(nn.Module):
    """A ResNet-50 in small: bottlenecks beside identity and projected shortcuts."""

    class Block(nn.Module):
        def __init__(self, fan_in: int, width: int):
            super().__init__()
            self.reduce = conv_bn(fan_in, width, 1)
            self.conv = conv_bn(width, width)
            self.expand = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn = nn.BatchNorm2d(4 * width)
            same = fan_in == 4 * width
            self.shortcut = nn.Identity() if same else nn.Conv2d(fan_in, 4 * width, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn(self.expand(self.conv(self.reduce(x))))
            out += self.shortcut(x)
            return F.relu(out)

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.blocks = nn.Sequential(
            self.Block(6, 3), self.Block(12, 3), self.Block(12, 5)
        )
        self.head = nn.Linear(20, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class Separable(nn.Module):
    """Depthwise convolutions, one of them with two outputs per channel."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.depthwise = conv_bn(6, 6, groups=6)
        self.pointwise = conv_bn(6, 8, 1)
        self.doubling = nn.Conv2d(8, 16, 3, groups=8)
        self.prelu = nn.PReLU(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(self.stem(images)))
        return self.head(self.prelu(self.doubling(x)).mean((2, 3)))


class Squeezing(nn.Module):
    """Squeeze and excitation: channels scaled by a function of their means."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.gate = nn.Linear(8, 8)
        self.conv = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = x * self.excite(y).sigmoid()
        gate = torch.sigmoid(self.gate(x.mean(dim=[2, 3])))
        x = F.relu(self.conv(x * gate.view(-1, 8, 1, 1)))
        return self.head(x.amax((-2, -1)))


class Dense(nn.Module):
    """A DenseNet in small: every layer sees all before it, also the images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.second = nn.Conv2d(7, 5, 3, padding=1)
        self.third = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(12 + 6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([images, self.first(images)], dim=1)
        x = torch.cat([x, self.second(F.relu(self.norm(x)))], 1)
        left, right = torch.cat((x, self.third(x)), 1).split([12, 6], dim=1)
        return self.head(torch.cat([left, right.tanh()], 1).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution, group norms with and without groups, channel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.one = nn.Conv2d(8, 6, 1)
        self.one_norm = nn.GroupNorm(1, 6)
        self.all = nn.Conv2d(6, 8, 1)
        self.all_norm = nn.InstanceNorm2d(8, affine=True)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(images)))
        x = F.gelu(self.one_norm(self.one(x)))
        x = self.grouped(F.gelu(self.all_norm(self.all(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(x).mean((2, 3)))


class WrittenOut(nn.Module):
    """Attention written out, q, k and v in one layer and apart; a layer scale."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.scale * self.proj(y.transpose(1, 2).reshape(b, n, c))
        q, k, v = (
            layer(x).view(b, n, 2, 4).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = torch.softmax(q @ k.transpose(-2, -1) / 2, dim=-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        return self.head(x[:, 0])


class Tied(nn.Module):
    """One square weight under two names: a group on both its dimensions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(192, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, CLASSES)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images.flatten(1)))
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


class Sorting(nn.Module):
    """Something no rule knows, between layers that have rules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 8)
        self.second = nn.Linear(8, 6)
        self.bilinear = nn.Bilinear(6, 6, 5)
        self.third = nn.Linear(5, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(images.flatten(1)))))
        x = self.bilinear(x, x.cumsum(1))
        return self.head(F.relu(self.third(x)))


class Checked(nn.Module):
    """Convolutions behind Python code that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.norm = nn.GroupNorm(2, 6)
        self.prelu = nn.PReLU(6)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.up = nn.ConvTranspose2d(6, 5, 2, 2)
        self.patch = nn.Conv2d(5, 8, 4, 4)
        self.place = nn.Embedding(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor, *more: Tensor) -> Tensor:
        assert images.ndim == 4, "batches of images only"
        assert not more
        x = self.prelu(self.norm(self.stem(images)))
        for conv, _ in zip(self.convs, range(x.shape[1]), strict=False):
            x = x + F.relu(conv(x), inplace=True)
        x = F.interpolate(self.up(F.pad(x, (1, 1, 1, 1))), size=(8, 8))
        if x.shape[0] > 1:
            x = x * 1.0
        with torch.no_grad():
            x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.place(torch.arange(x.shape[1]))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(torch.cat(x.split(3, dim=1), 1).mean(1))


OWN = {
    own.__name__.lower(): own
    for own in (
        *(Biasless, Flattening, Bottlenecks, Separable, Squeezing, Dense, Grouped),
        *(WrittenOut, Tied, Sorting, Checked),
    )
}

BUILTIN = {
    "mlp,width=8": (1, 8, 8),
    "mlp,width=8,depth=3,batchnorm=true": (1, 8, 8),
    "convnet,width=4": (3, 8, 8),
    "vgg11_bn": (1, 8, 8),
    "resnet20,width=0.5": (3, 8, 8),
    "resnet20,width=0.5,shortcut=B": (3, 8, 8),
    "wrn16_1": (3, 8, 8),
    "vit_small_32x32,depth=1,dim=24,mlp_dim=16": (3, 8, 8),
}

NETWORKS = [*BUILTIN, *OWN]


@dataclass(frozen=True)
class Case:
    """A network in eval mode, its spec, and images."""

    name: str
    network: nn.Module
    spec: PermutationSpec
    shape: tuple[int, int, int]

    def images(self) -> Tensor:
        return torch.randn(2, *self.shape, generator=generator("images")).double()

    def state(self, seed: int = 0) -> State:
        """Generic weights, float32: no channel equal to another, no statistic at 0."""
        random = generator(seed, self.name)
        drawn: dict[int, Tensor] = {}
        for tensor in self.network.state_dict(keep_vars=True).values():
            value = torch.rand(tensor.shape, generator=random)
            if tensor.ndim > 1:
                value = (value - 0.5) * 3 / tensor[0].numel() ** 0.5
            drawn[id(tensor)] = value if tensor.is_floating_point() else tensor.clone()
        named = self.network.state_dict(keep_vars=True).items()
        return {name: drawn[id(tensor)].clone() for name, tensor in named}

    def logits(self, state: State) -> Tensor:
        double = {
            n: t.double() if t.is_floating_point() else t for n, t in state.items()
        }
        with torch.no_grad():
            return functional_call(
                self.network, double, (self.images(),), tie_weights=False
            )


@pytest.fixture(scope="session")
def case_of() -> Callable[[str], Case]:
    """Derive the spec of a network by its name, once."""
    known: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in known:
            shape = BUILTIN.get(name, (3, 8, 8))
            with seeded(0):
                network = OWN[name]() if name in OWN else build(name, CLASSES, shape)
            spec = derive_permutations(network, shape)
            known[name] = Case(name, network.eval(), spec, shape)
        return known[name]

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", NETWORKS, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)
