"""Activation matching: units that respond alike to the same images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.alignment.apply import identity, refuse_unfitting
from metaensemble.alignment.assignment import best_permutation
from metaensemble.alignment.groups import Axis, PermutationSpec
from metaensemble.alignment.matching import Matching
from metaensemble.core.errors import InputError
from metaensemble.core.states import refuse_different
from metaensemble.models.modes import modes_kept

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class _Moments:
    """Sums over samples of one layer's channels in both networks, and of products."""

    axis: Axis
    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))  # (2, channels)
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))  # (2, channels)
    products: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, mine: Tensor, theirs: Tensor) -> None:
        both = torch.stack([mine, theirs])  # (2, samples, channels)
        self.count += both.shape[1]
        self.sums = self.sums + both.sum(1)
        self.squares = self.squares + both.square().sum(1)
        self.products = self.products + mine.T @ theirs

    def correlation(self) -> Tensor:
        """Return (channels, channels), of A's with B's; 0 for constant channels."""
        mean = self.sums / self.count
        spread = (self.squares / self.count - mean.square()).clamp_min(0).sqrt()
        covariance = self.products / self.count - mean[0][:, None] * mean[1]
        scale = spread[0][:, None] * spread[1]
        dead = scale <= 1e-9 * (1 + self.squares.sum() / self.count)
        return torch.where(dead, 0.0, covariance / scale)


def match_activations(
    spec: PermutationSpec,
    network: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    batches: Iterable[Tensor],
) -> Matching:
    """Return permutations of B that pair units responding alike to the same images.

    Maximises the sum of correlations of the outputs of the layers that make a group's
    channels (Ainsworth et al. 2022, Git Re-Basin, arXiv 2209.04836, section 3.1, with
    correlation as in Jordan et al. 2022, REPAIR, arXiv 2211.08403, section 2), every
    position being a sample; of a residual stream, over all layers that write to it.
    Groups are independent of one another: the result is the optimum, in one pass. A
    group that no convolution or linear layer makes, such as the heads of
    `nn.MultiheadAttention`, keeps its order.

    Args:
        spec: the permutations of the network.
        network: runs both states, in eval mode; stays as it is.
        state_a: the reference.
        state_b: is to be permuted.
        batches: normalised images (batch, channels, height, width), unlabelled.

    Raises:
        InputError: no images, or the states are not of the spec's network.
    """
    named = {"the reference": state_a, "the other": state_b}
    refuse_different(named, "networks to be matched must share one architecture")
    refuse_unfitting(spec, state_a)
    layers = _layers(spec, network)
    with torch.no_grad():
        for images in batches:
            mine = _outputs(network, state_a, images, layers)
            theirs = _outputs(network, state_b, images, layers)
            for layer, moments in layers.items():
                if layer in mine:
                    for each in moments.values():
                        each.add(
                            _samples(mine[layer], network, layer, each.axis),
                            _samples(theirs[layer], network, layer, each.axis),
                        )
    measured = [m for moments in layers.values() for m in moments.values() if m.count]
    if layers and (not measured or max(m.count for m in measured) < 2):
        raise InputError(
            "matching by activations needs images, at least two of them, but got fewer;"
            " pass batches of normalised training images"
        )
    permutations = identity(spec)
    before = after = 0.0
    for group in spec.groups:
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for moments in layers.values():
            if group.name in moments and moments[group.name].count:
                total += moments[group.name].correlation()
        best = best_permutation(group, total)
        rows = torch.arange(group.size)
        before += float(total.trace())
        if float(total[rows, best].sum()) > float(total.trace()):
            permutations[group.name] = best
        after += float(total[rows, permutations[group.name]].sum())
    return Matching(permutations, after, (before, after))


def _layers(
    spec: PermutationSpec, network: nn.Module
) -> dict[str, dict[str, _Moments]]:
    """Return, per layer whose outputs are channels of groups, what to collect."""
    modules = dict(network.named_modules())
    layers: dict[str, dict[str, _Moments]] = {}
    for group in spec.groups:
        for axis in group.axes:
            layer, _, attribute = axis.tensor.rpartition(".")
            made = attribute == "weight" and axis.dim == 0
            if made and isinstance(modules.get(layer), LAYERS):
                whole = axis.first == 0 and axis.count == group.size
                if whole and group.name not in layers.setdefault(layer, {}):
                    layers[layer][group.name] = _Moments(axis)
    return layers


def _outputs(
    network: nn.Module,
    state: Mapping[str, Tensor],
    images: Tensor,
    layers: Iterable[str],
) -> dict[str, Tensor]:
    """Return the outputs of layers for images, the last where a layer runs twice."""
    outputs: dict[str, Tensor] = {}

    def note(layer: str):
        def hook(_: nn.Module, args: object, output: Tensor) -> None:
            outputs[layer] = output.clone()  # what follows may work in place

        return hook

    handles = [
        network.get_submodule(layer).register_forward_hook(note(layer))
        for layer in layers
    ]
    try:
        with modes_kept(network):
            network.eval()
            functional_call(network, dict(state), (images,), tie_weights=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _samples(output: Tensor, network: nn.Module, layer: str, axis: Axis) -> Tensor:
    """Return float64 (samples, channels) of the channels of an axis."""
    at = -1 if isinstance(network.get_submodule(layer), nn.Linear) else 1
    own = output.narrow(at, axis.offset, axis.count * axis.span).movedim(at, -1)
    own = own.reshape(-1, axis.count, axis.span).transpose(1, 2)
    return own.reshape(-1, axis.count).double()
