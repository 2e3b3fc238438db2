"""Tiny networks, random teachers of them, and generators that are awake."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import State
from metaensemble.models import build
from metaensemble.weightformer import (
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
)

SHAPE = (1, 8, 8)
CLASSES = 3


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, as in MobileNets, then a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(4)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.group_norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.depthwise_norm(self.depthwise(self.stem(images))))
        return self.head(self.group_norm(self.pointwise(x)).mean((2, 3)))


class Lone(nn.Module):
    """Parameters that no layer holds, layer norms with and without a layer before."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.zeros(64))
        self.norm = nn.LayerNorm(64)
        self.hidden = nn.Linear(64, 5)
        self.hidden_norm = nn.LayerNorm(5)
        self.prelu = nn.PReLU(5)
        self.table = nn.Parameter(torch.zeros(2, 3, 5))
        self.embedding = nn.Embedding(2, 5)
        self.transposed = nn.ConvTranspose1d(5, 4, 2, bias=True)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images.flatten(1) + self.offset) * self.temperature
        x = self.prelu(self.hidden_norm(self.hidden(x)))
        x = x + self.table.mean((0, 1)) + self.embedding.weight.sum(0)
        return self.head(self.transposed(x[:, :, None]).mean(2))


class Tied(nn.Module):
    """One weight under two names, once used as it is and once transposed."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.encode.weight
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.encode(images.flatten(1))))))


class Attentive(nn.Module):
    """PyTorch's own encoder layer, and attention whose keys are of another width."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 4, batch_first=True)
        self.pool = nn.MultiheadAttention(
            4, 2, kdim=8, vdim=8, batch_first=True, add_bias_kv=True
        )
        self.query = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.layer(images[:, 0])  # (batch, 8 rows, 8 columns)
        pooled, _ = self.pool(self.query.expand(len(rows), 1, 4), rows, rows)
        return self.head(pooled[:, 0])


OWN = {"separable": Separable, "lone": Lone, "tied": Tied, "attentive": Attentive}


@pytest.fixture(scope="session")
def network_of() -> Callable[[str], nn.Module]:
    """Build a network in eval mode with no number that is zero or one by default.

    Its name is a built-in with fields, or a key of `OWN`.
    """

    def make(name: str, seed: int = 0) -> nn.Module:
        with seeded(seed, name):
            network = OWN[name]() if name in OWN else build(name, CLASSES, SHAPE)
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor += 0.1 * torch.rand_like(tensor)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def teachers_of(network_of: Callable[..., nn.Module]) -> Callable[..., list[State]]:
    """The state dicts of `count` networks of one name."""

    def make(name: str, count: int = 2) -> list[State]:
        networks = [network_of(name, seed) for seed in range(count)]
        return [
            {k: v.clone() for k, v in network.state_dict().items()}
            for network in networks
        ]

    return make


@pytest.fixture(scope="session")
def generator_of(network_of: Callable[..., nn.Module]) -> Callable[..., WeightFormer]:
    """A tiny generator in eval mode for a network and its teachers.

    Unless it is to sleep, the decoders and scores that start at zero are random.
    """

    def make(
        name: str, teachers: list[State], *, asleep: bool = False, **fields: object
    ) -> WeightFormer:
        shape = {"width": 8, "heads": 2, "depth": 2, "expansion": 1.0, **fields}
        config = WeightFormerConfig.model_validate(shape)
        spec = derive_token_spec(network_of(name), SHAPE)
        with seeded("generator"):
            weightformer = WeightFormer(config, spec)
        weightformer.standardise(teachers)
        random = generator("awake")
        with torch.no_grad():
            for table in (
                () if asleep else (*weightformer.decode.values(), weightformer.score)
            ):
                for parameter in table.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=random))
        return weightformer.eval()

    return make
