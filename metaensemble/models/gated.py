"""Branches of one network and the gate that weighs them, as one deployable network.

As the field ``branches`` of an architecture, ``resnet20,branches=3``, the network loads
from a member file like any other.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metaensemble.models.branches import Branched
from metaensemble.models.shapes import InputShape
from metaensemble.models.slim import parse_slim, slim_text


class Gate(nn.Module):
    """How much each branch counts for an image, read off the trunk's value.

    Global average pool -> linear -> batch norm -> ReLU -> softmax (Lan et al. 2018,
    section 3.2; batch norm and ReLU as in the authors' code). Where the ReLU silences
    all, the branches count alike. A batch of one image has no statistics of its own: it
    is normalised by the running ones, which it leaves as they are.

    Args:
        channels: of the trunk's value.
        branches: how many.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, value: Tensor) -> Float[Tensor, "batch branches"]:
        """Return the shares, which sum to 1 for each image.

        Args:
            value: of the trunk: maps (batch, channels, height, width), tokens (batch,
                tokens, channels), or vectors (batch, channels).
        """
        scores, norm = self.linear(pooled(value)), self.norm
        if self.training and len(scores) == 1:
            statistics = norm.running_mean, norm.running_var
            scores = F.batch_norm(
                scores, *statistics, norm.weight, norm.bias, eps=norm.eps
            )
        else:
            scores = norm(scores)
        return scores.relu().softmax(-1)


class Gated(nn.Module):
    """A trunk, its branches, and the gate that weighs their logits (ONE-E)."""

    def __init__(self, trunk: nn.Module, branches: nn.ModuleList, gate: Gate) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = branches
        self.gate = gate

    def forward(self, inputs: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the weighted logits of images (batch, channels, height, width)."""
        value = self.trunk(inputs)
        shares = self.gate(value)
        return weighed(shares, torch.stack([head(value) for head in self.branches]))


def gate_for(body: Branched, input_shape: InputShape) -> Gate:
    """Return a new gate for a network's branches, on its device."""
    first = next(body.parameters())
    images = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
    mode = body.training
    with torch.no_grad():
        value = body.eval().trunk(images)
    body.train(mode)
    return Gate(pooled(value).shape[1], len(body.branches)).to(first)


def gated(networks: Sequence[nn.Module], input_shape: InputShape) -> Gated:
    """Return networks of one architecture as branches, with a new gate.

    Args:
        networks: the first lends the trunk, each its head; left as they are.
        input_shape: channels, height, width.

    Raises:
        InputError: they cannot be split.
    """
    body = Branched(networks, input_shape)
    return Gated(body.trunk, body.branches, gate_for(body, input_shape))


def weighed(
    shares: Float[Tensor, "batch branches"],
    logits: Float[Tensor, "branches batch classes"],
) -> Float[Tensor, "batch classes"]:
    """Return the sum of the branches' logits by their shares."""
    return torch.einsum("nm,mnc->nc", shares, logits)


def pooled(value: Tensor) -> Float[Tensor, "batch channels"]:
    """Return the mean of a value over its positions; vectors are themselves."""
    if value.ndim == 3:  # tokens
        return value.mean(1)
    return value if value.ndim == 2 else value.flatten(2).mean(2)


def gated_slim(network: Gated, text: str) -> str:
    """Return the text ``slim`` of a gated network whose branches' networks have `text`.

    Args:
        network: slimmed already.
        text: of the plain network.
    """
    layers = {}
    trunk = dict(network.trunk.named_modules())
    for name, sizes in parse_slim(text).items():
        if name in trunk:
            layers[f"trunk.{name}"] = sizes
        else:
            for i in range(len(network.branches)):
                layers[f"branches.{i}.{name}"] = sizes
    gate = network.gate.linear
    layers["gate.linear"] = gate.in_features, gate.out_features
    return slim_text(layers, network)
