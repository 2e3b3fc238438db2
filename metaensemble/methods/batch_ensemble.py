"""Members of rank one: an ensemble that shares all but two vectors a layer.

BatchEnsemble (Wen et al. 2020, arXiv 2002.06715): member i of a convolution or linear
layer computes y_i = ((x_i * r_i) W + b) * s_i, with r_i over its input channels and s_i
over its output channels. The bias is scaled, too.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.errors import InputError
from metaensemble.models import InputShape
from metaensemble.models.modes import run_on_zeros

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class BatchEnsemble(nn.Module):
    """Members of one network: each has factors r, s of its own in every layer.

    Factors are parametrised by what they differ from 1, so that weight decay draws them
    towards 1. Their gradients are multiplied by the number of members, which undoes
    that each member has but its share in the mean over the tiled batch; what decays
    them is added by the optimizer, and so is the full weight decay (Nam et al. 2022:
    1/M of it, multiplied by M like the rest).

    What has factors: convolutions and linear layers, grouped ones too, whose first
    dimension is the batch. All else is shared by the members: batch norm with its
    statistics of the tiled batch, transposed convolutions, layers whose weight is used
    twice, and those that are never called themselves, such as the projections inside
    `nn.MultiheadAttention`.

    Args:
        network: left as it is; its layers work otherwise during `forward` only.
        members: how many, M.
        input_shape: channels, height, width of the network's input.
        init_std: standard deviation of what the factors start with, beside 1; drawn
            from the global generator.

    Raises:
        InputError: no layer of the network can have factors.
    """

    def __init__(
        self,
        network: nn.Module,
        members: int,
        input_shape: InputShape,
        init_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.members = members
        layers = _layers(network, input_shape)
        self.names = tuple(layers)
        """Of the layers that have factors, in the order of the network's modules."""
        self.inputs = nn.ParameterList()
        """d per layer, (members, input channels); r = 1 + d."""
        self.outputs = nn.ParameterList()
        """d per layer, (members, output channels); s = 1 + d."""
        for layer in layers.values():
            for factors, channels in (
                (self.inputs, _channels(layer)[0]),
                (self.outputs, _channels(layer)[1]),
            ):
                factors.append(layer.weight.new_zeros(members, channels))
        if init_std:
            for factor in (*self.inputs, *self.outputs):
                nn.init.normal_(factor, std=init_std)

    def forward(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "members batch classes"]:
        """Return every member's logits, all from one pass of the tiled batch."""
        tiled = torch.cat([inputs] * self.members)  # members go first
        with self._factors():
            logits = self.network(tiled)
        return logits.unflatten(0, (self.members, -1))

    @torch.no_grad()
    def merged(self, shares: Sequence[float] | None = None) -> nn.Module:
        """Return a plain copy of the network with the members' mean factors.

        W' = diag(mean s) W diag(mean r) and b' = b * mean s, which is what a member
        with these factors computes. Statistics of batch norm are copied as they are.

        Args:
            shares: of the members, adding up to 1; default: all the same. One member
                alone is a network, too.
        """
        merged = copy.deepcopy(self.network)
        modules = dict(merged.named_modules())
        for name, r, s in zip(self.names, self.inputs, self.outputs, strict=True):
            layer = modules[name]
            assert isinstance(layer, Layer)
            folded = _folded(layer, _mean(r, shares), _mean(s, shares))
            for key, value in folded.items():
                trains = getattr(layer, key).requires_grad
                setattr(layer, key, nn.Parameter(value, trains))
        return merged

    @contextmanager
    def _factors(self) -> Iterator[None]:
        """Let the layers work member by member while the block runs."""
        modules = dict(self.network.named_modules())
        changed = [modules[name] for name in self.names]
        for layer, r, s in zip(changed, self.inputs, self.outputs, strict=True):
            assert isinstance(layer, Layer)
            twin = copy.copy(layer)  # of the same tensors, with the class's forward
            layer.forward = partial(self._by_member, twin, r, s)  # pyright: ignore
        try:
            yield
        finally:
            for layer in changed:
                del layer.forward  # the class's own is back

    def _by_member(self, layer: Layer, r: Tensor, s: Tensor, tiled: Tensor) -> Tensor:
        """Return a layer's values of the tiled batch, each member with its factors.

        Factors go into the weights, which are small, instead of the maps.
        """
        factors = zip(self._scales(r), self._scales(s), strict=True)
        parts = tiled.chunk(self.members)
        return torch.cat(
            [
                functional_call(layer, _folded(layer, *own), part)
                for part, own in zip(parts, factors, strict=True)
            ]
        )

    def _scales(self, factor: Tensor) -> Tensor:
        """Return 1 + d, whose gradient is multiplied by the number of members."""
        scale = 1 + factor
        if scale.requires_grad:
            scale.register_hook(lambda gradient: gradient * self.members)
        return scale


def _folded(layer: Layer, r: Tensor, s: Tensor) -> dict[str, Tensor]:
    """Return weight and bias of a layer with factors r, s: diag(s) W diag(r), b s."""
    weight, bias = layer.weight, layer.bias
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    per_row = r.view(groups, 1, -1)  # of an output channel's inputs
    per_row = per_row.expand(-1, len(weight) // groups, -1).flatten(0, 1)
    ones = [1] * (weight.ndim - 2)
    folded = weight * per_row.unflatten(-1, (-1, *ones)) * s.view(-1, 1, *ones)
    tensors = {"weight": folded.contiguous()}
    if bias is not None:
        tensors["bias"] = bias * s
    return tensors


def _mean(factor: Tensor, shares: Sequence[float] | None) -> Tensor:
    if shares is None:
        return 1 + factor.mean(0)
    weights = torch.tensor(shares, device=factor.device, dtype=factor.dtype)
    return 1 + (weights[:, None] * factor).sum(0)


def _channels(layer: Layer) -> tuple[int, int]:
    """Return how many channels go in and out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _layers(network: nn.Module, input_shape: InputShape) -> dict[str, Layer]:
    """Return the layers that can have factors by name."""
    uses = Counter(
        id(tensor)
        for module in network.modules()
        for tensor in module._parameters.values()
        if tensor is not None
    )
    candidates: dict[str, Layer] = {}
    for name, module in network.named_modules():
        own = module._parameters.values()
        alone = all(uses[id(tensor)] == 1 for tensor in own if tensor is not None)
        # of a weight that is computed (weight norm) there is no parameter to fold into
        if isinstance(module, Layer) and alone and "weight" in module._parameters:
            candidates[name] = module
    one, two = (_sizes(network, candidates, input_shape, count) for count in (1, 2))
    layers = {
        name: layer
        for name, layer in candidates.items()
        if one[name] and two[name] == [2 * size for size in one[name]]
    }
    if not layers:
        raise InputError(
            "a latent ensemble needs convolutions or linear layers to tell its members "
            f"apart, but this {type(network).__name__} has none that can; choose "
            "--method kd"
        )
    return layers


@torch.no_grad()
def _sizes(
    network: nn.Module,
    layers: dict[str, Layer],
    input_shape: InputShape,
    count: int,
) -> dict[str, list[int]]:
    """Return the first dimension of each layer's input, per call, for `count` images.

    -1 for a call whose input a pre-hook cannot see.
    """
    found: dict[str, list[int]] = {name: [] for name in layers}
    handles = []
    for name, layer in layers.items():

        def note(_: Any, args: Any, name: str = name) -> None:
            known = args and isinstance(args[0], Tensor)
            found[name].append(len(args[0]) if known else -1)

        handles.append(layer.register_forward_pre_hook(note))
    try:
        run_on_zeros(network, input_shape, count)
    finally:
        for handle in handles:
            handle.remove()
    return found
