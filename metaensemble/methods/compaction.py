"""Channels that can be taken out of a network, and taking them out.

Which channels belong together is read off the network's permutation symmetries: what
may change places together may also leave together. A group that cannot be narrowed in
this way (channels of attention, of layer norms, next to padded shortcuts) stays whole.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.alignment import derive_permutations
from metaensemble.alignment.groups import Group
from metaensemble.core.seeds import generator
from metaensemble.models import Architecture, InputShape
from metaensemble.models.slim import (
    NORMS,
    Widths,
    apply_slim,
    parse_slim,
    slim_text,
    widths,
)

TOLERANCE = 1e-3
"""Largest relative change of a logit when an unseen channel is taken out."""


@dataclass(frozen=True)
class Layer:
    """A layer some of whose inputs or outputs can be taken out."""

    inputs: Tensor
    """int64 (inputs,): the network's prunable channel that each belongs to, or -1."""
    outputs: Tensor
    """int64 (outputs,), likewise."""
    groups: int
    """Of a convolution; 1 for others."""
    reads: bool
    """Whether it mixes its inputs, so that a gate on them hides them."""

    def kept(self, live: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of the inputs and outputs that stay.

        Args:
            live: bool (channels,).
        """
        known = torch.cat([live.cpu(), torch.ones(1, dtype=torch.bool)])  # -1: stays
        return known[self.inputs].nonzero()[:, 0], known[self.outputs].nonzero()[:, 0]


@dataclass(frozen=True)
class Channels:
    """All channels of a network that can be taken out, in one row, group by group."""

    names: tuple[str, ...]
    """Of the groups: the layer that makes the channels."""
    sizes: tuple[int, ...]
    """Channels per group."""
    layers: dict[str, Layer]
    """Every layer that a channel touches."""
    whole: tuple[str, ...]
    """Names of groups that keep all their channels."""

    @property
    def count(self) -> int:
        """Return the number of channels."""
        return sum(self.sizes)

    def totals(self, values: Tensor) -> Tensor:
        """Return the sum per group of values (channels,)."""
        return torch.stack([part.sum() for part in values.split(self.sizes)])


def prunable(network: nn.Module, input_shape: InputShape) -> Channels:
    """Return the channels that can be taken out of a network, proved by trying.

    A trial takes one channel out of a group and compares the logits with those of the
    whole network to which the channel is invisible, at random weights.

    Args:
        network: stays as it is.
        input_shape: channels, height, width.

    Raises:
        InputError: the network cannot be traced.
    """
    spec = derive_permutations(network, input_shape)
    possible = [group for group in spec.groups if _expressible(network, group)]
    proved = possible
    if possible and not _passes(network, possible, input_shape):
        proved = [g for g in possible if _passes(network, [g], input_shape)]
    found = _channels(network, proved)
    kept = {group.name for group in proved}
    whole = tuple(group.name for group in spec.groups if group.name not in kept)
    return Channels(found.names, found.sizes, found.layers, whole)


@contextmanager
def gated(network: nn.Module, channels: Channels, gates: Tensor) -> Iterator[None]:
    """Scale, in the block, every channel by its gate wherever it is read.

    Args:
        network: whose forward passes are changed.
        channels: of the network.
        gates: (channels,), on the network's device.
    """
    known = torch.cat([gates, gates.new_ones(1)])
    handles = []
    for name, layer in channels.layers.items():
        if not layer.reads:
            continue
        factor = known[layer.inputs.to(gates.device)]

        def before(module: nn.Module, args: Any, factor: Tensor = factor) -> Any:
            x = args[0]
            if not isinstance(module, nn.Linear):
                factor = factor.view(-1, *(1,) * (x.ndim - 2))
            return (x * factor.to(x.dtype), *args[1:])

        hook = network.get_submodule(name).register_forward_pre_hook(before)
        handles.append(hook)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def folded(network: nn.Module, channels: Channels, gates: Tensor) -> nn.Module:
    """Return a copy that computes without gates what the network does with them."""
    copied = copy.deepcopy(network)
    known = torch.cat([gates, gates.new_ones(1)])
    for name, layer in channels.layers.items():
        if layer.reads:
            weight = copied.get_parameter(f"{name}.weight")
            factor = known[layer.inputs.to(gates.device)]
            weight *= factor.view(-1, *(1,) * (weight.ndim - 2)).to(weight.dtype)
    return copied


@torch.no_grad()
def compact(
    network: nn.Module, channels: Channels, live: Tensor
) -> tuple[nn.Module, Widths]:
    """Return a copy of the network without the channels that are not live.

    Args:
        network: stays as it is.
        channels: of the network.
        live: bool (channels,); at least one per group.

    Returns:
        The smaller network, and the widths of the layers that changed.
    """
    small = copy.deepcopy(network)
    changed: Widths = {}
    state = dict(small.state_dict())
    for name, layer in channels.layers.items():
        inputs, outputs = layer.kept(live)
        if (len(inputs), len(outputs)) == (len(layer.inputs), len(layer.outputs)):
            continue
        changed[name] = len(inputs), len(outputs)
        owned = small.get_submodule(name).state_dict()
        for key, tensor in owned.items():
            part = tensor
            if tensor.ndim:
                part = part.index_select(0, outputs.to(tensor.device))
            if layer.reads and tensor.ndim > 1:
                part = part.index_select(1, inputs.to(tensor.device))
            state[f"{name}.{key}"] = part.contiguous()
    apply_slim(small, changed)
    small.load_state_dict(state)
    return small, changed


def slimmed(architecture: str, small: nn.Module, changed: Widths) -> str:
    """Return the text of what `compact` made of a network of this architecture."""
    whole = Architecture.parse(architecture)
    before = parse_slim(str(whole.fields["slim"])) if whole != whole.full else {}
    return str(whole.slimmed(slim_text(before | changed, small)))


def _expressible(network: nn.Module, group: Group) -> bool:
    """Return whether a group's channels are those of layers that can be slimmed."""
    if group.heads > 1 or group.parts > 1:
        return False
    names: dict[int, int] = {}
    for tensor in network.state_dict(keep_vars=True).values():
        names[id(tensor)] = names.get(id(tensor), 0) + 1
    state = network.state_dict(keep_vars=True)
    reads = False
    for axis in group.axes:
        owner = axis.tensor.rpartition(".")[0]
        module = network.get_submodule(owner)
        whole = axis.first == 0 and axis.count == group.size
        alone = names[id(state[axis.tensor])] == 1
        if widths(module) is None or not whole or not alone:
            return False
        reads |= axis.dim == 1
    return reads


def _channels(network: nn.Module, groups: Sequence[Group]) -> Channels:
    maps: dict[tuple[str, int], Tensor] = {}
    start = 0
    for group in groups:
        own = torch.arange(start, start + group.size)
        for axis in group.axes:
            name = axis.tensor.rpartition(".")[0]
            module = network.get_submodule(name)
            sizes = widths(module)
            assert sizes is not None
            key = name, 1 - axis.dim  # dimension 0 of a weight is the outputs
            total = sizes[key[1]]
            there = maps.setdefault(key, torch.full((total,), -1))
            stretch = slice(axis.offset, axis.offset + axis.count * axis.span)
            there[stretch] = own.repeat_interleave(axis.span)
        start += group.size
    layers: dict[str, Layer] = {}
    for name, module in network.named_modules():
        sizes = widths(module)
        if sizes is None or not {(name, 0), (name, 1)} & maps.keys():
            continue
        inputs, outputs = (
            maps.get((name, side), torch.full((sizes[side],), -1)) for side in (0, 1)
        )
        convolution_groups = getattr(module, "groups", 1)
        norm = type(module) in NORMS
        if norm:
            inputs = outputs
        elif convolution_groups > 1:  # its groups leave as wholes
            each, inside = (size // convolution_groups for size in reversed(sizes))
            inputs = outputs[::each].repeat_interleave(inside)
        reads = not norm and convolution_groups == 1
        layers[name] = Layer(inputs, outputs, convolution_groups, reads)
    names = tuple(group.name for group in groups)
    return Channels(names, tuple(group.size for group in groups), layers, ())


@torch.no_grad()
def _passes(
    network: nn.Module, groups: Sequence[Group], input_shape: InputShape
) -> bool:
    """Return whether a network without a channel of each group is one that hides it."""
    random = generator("prunable")
    trial = copy.deepcopy(network).eval()
    for tensor in trial.state_dict().values():
        if tensor.is_floating_point():  # no two channels alike, none of them silent
            noise = torch.rand(tensor.shape, generator=random)
            scale = max(1, tensor[0].numel() if tensor.ndim > 1 else 1) ** -0.5
            noise = (noise - 0.5) * 3 * scale if tensor.ndim > 1 else noise / 2
            tensor += noise.to(tensor)
    first = next(trial.parameters())
    images = torch.randn(2, *input_shape, generator=random).to(first)
    channels = _channels(network, groups)
    gates = torch.ones(channels.count, device=first.device)
    for part in gates.split(channels.sizes):
        part[0] = 0
    with gated(trial, channels, gates):
        hidden = trial(images)
    try:
        small = compact(trial, channels, gates.bool())[0](images)
    except RuntimeError:  # sizes do not fit
        return False
    return bool((small - hidden).abs().max() <= TOLERANCE * hidden.abs().max())
