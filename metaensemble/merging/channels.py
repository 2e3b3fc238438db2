"""Means and deviations of layers' channels: measured, and set to given ones.

A layer whose output is affine in its own weight and bias, channel by channel, can be
given any channel means and deviations by changing just these two tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The only common base of BatchNorm1d, 2d, 3d and SyncBatchNorm.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

CONSTANT = 1e-5
"""A deviation below this fraction of its layer's is that of a constant channel."""

LARGEST_FACTOR = 100.0
"""What is nearly constant is not blown up further: that would be its rounding."""


@dataclass(frozen=True)
class Layer:
    """A layer whose channels can be rescaled, and shifted if it has a bias."""

    name: str
    shifts: bool


@dataclass(frozen=True)
class Found:
    """The layers of a network that can be corrected, and what else was seen."""

    layers: tuple[Layer, ...]
    """In order of execution."""
    notes: tuple[str, ...]
    """What is left as it is, or corrected in part, and why."""


@dataclass
class Moments:
    """Channel statistics of one layer in every batch."""

    means: list[Float[Tensor, " channels"]] = field(default_factory=list)
    deviations: list[Float[Tensor, " channels"]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Images of the batches."""

    def add(self, output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Add a batch's output, and return its channels' means and deviations."""
        others = [d for d in range(output.ndim) if d != dim % output.ndim]
        variance, mean = torch.var_mean(output, others, correction=0)
        self.means.append(mean)
        self.deviations.append(variance.sqrt())
        self.sizes.append(len(output))
        return self.means[-1], self.deviations[-1]

    def overall(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, the batches' variances averaged."""
        shares = torch.tensor(self.sizes, dtype=torch.float64) / sum(self.sizes)
        shares = shares.to(self.means[0].device)[:, None]
        mean = (shares * torch.stack(self.means).double()).sum(0)
        variance = (shares * torch.stack(self.deviations).double().square()).sum(0)
        return mean, variance.sqrt()


Statistics = dict[str, Moments]
"""Layer -> its moments."""


def find_layers(network: nn.Module, images: Tensor) -> Found:
    """Run a network once and return which of its layers can be corrected.

    They are convolutions, linear layers (channels last) and affine batch norms, except
    the output layer, what a batch norm normalises directly afterwards, what runs more
    than once or not by itself, and what shares its weight.

    Args:
        network: in eval mode.
        images: any that it takes; two do. All outputs are held at once.
    """
    candidates: dict[nn.Module, str] = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, (*LINEAR_MAPS, BatchNorm)) and module.weight is not None
    }
    runs: dict[nn.Module, int] = dict.fromkeys(candidates, 0)
    order: list[nn.Module] = []
    produced: dict[nn.Module, tuple[Tensor, int]] = {}
    absorbed: set[nn.Module] = set()

    def before(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> None:
        seen = args[0] if args else kwargs["input"]
        own = (m for m in order if _is(seen, produced[m]))
        absorbed.update(m for m in own if isinstance(m, LINEAR_MAPS))

    def after(module: nn.Module, _: object, output: Tensor) -> None:
        runs[module] += 1
        order.append(module)
        # In-place operations keep the tensor, but count its version up.
        produced[module] = (output, output._version)

    handles = [
        m.register_forward_pre_hook(before, with_kwargs=True)
        for m in network.modules()
        if isinstance(m, BatchNorm)
    ]
    handles += [m.register_forward_hook(after) for m in candidates]
    try:
        with torch.no_grad():
            logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    head = next((m for m in order if _is(logits, produced[m])), None)
    if head is None:
        head = next((m for m in reversed(order) if isinstance(m, LINEAR_MAPS)), None)
    owners = _owners(network)
    layers: list[Layer] = []
    left: dict[str, list[str]] = {}
    for module in [*dict.fromkeys(order), *(m for m in runs if not runs[m])]:
        name = candidates[module]
        if module is head or module in absorbed:
            continue
        if runs[module] != 1:
            why = "runs more than once" if runs[module] else "does not run by itself"
            left.setdefault(why, []).append(name)
        elif not _plain(module, owners):
            left.setdefault("has no weight of its own", []).append(name)
        else:
            layers.append(Layer(name, module._parameters["bias"] is not None))
    notes = [f"not repaired: {_brief(own)}, which {why}" for why, own in left.items()]
    scaled = [layer.name for layer in layers if not layer.shifts]
    if scaled:
        notes.append(f"repaired in deviation only, without bias: {_brief(scaled)}")
    return Found(tuple(layers), tuple(notes))


def _is(tensor: object, produced: tuple[Tensor, int]) -> bool:
    return tensor is produced[0] and produced[0]._version == produced[1]


def _owners(network: nn.Module) -> dict[Tensor, int]:
    owners: dict[Tensor, int] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter] = owners.get(parameter, 0) + 1
    return owners


def _plain(module: nn.Module, owners: dict[Tensor, int]) -> bool:
    """Return whether weight and bias are parameters that no other module uses."""
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or "bias" not in module._parameters:
        return False  # computed from other parameters
    return owners[weight] == 1 and (bias is None or owners[bias] == 1)


def _brief(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def channel_dim(module: nn.Module) -> int:
    """Return which dimension of a layer's output is that of its channels."""
    return -1 if isinstance(module, nn.Linear) else 1


@torch.no_grad()
def measure_channels(
    network: nn.Module, layers: Sequence[Layer], batches: Iterable[Tensor]
) -> Statistics:
    """Return the channel statistics of a network's layers, batch by batch.

    Args:
        network: in eval mode.
        layers: of the network.
        batches: normalised images on its device.
    """
    statistics = {layer.name: Moments() for layer in layers}

    def note(moments: Moments):
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            moments.add(output, channel_dim(module))

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(note(moments))
        for name, moments in statistics.items()
    ]
    try:
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return statistics


def mean_statistics(statistics: Sequence[Statistics]) -> Statistics:
    """Return the means over networks of channel means and of channel deviations."""
    means: Statistics = {}
    for name, first in statistics[0].items():
        each = [own[name] for own in statistics]
        means[name] = Moments(
            list(torch.stack([torch.stack(m.means) for m in each]).mean(0)),
            list(torch.stack([torch.stack(m.deviations) for m in each]).mean(0)),
            first.sizes,
        )
    return means


@torch.no_grad()
def set_channels(
    network: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Tensor],
    goals: Statistics,
) -> None:
    """Change weights and biases so that layers have the channel statistics `goals`.

    One pass, in which each layer's output is corrected, batch by batch, to the goals of
    the very batch, so that what follows is measured behind corrected layers; then the
    averages are fused into the layers. Running statistics of batch norms become the
    averages of what flows into them in that pass. Without shift, a layer's channels
    are scaled only.

    Args:
        network: in eval mode; changed in place.
        layers: of the network.
        batches: normalised images on its device, those of the goals.
        goals: what to reach.
    """
    own = {layer.name: Moments() for layer in layers}

    def correct(layer: Layer):
        def hook(module: nn.Module, _: object, output: Tensor) -> Tensor:
            moments, goal = own[layer.name], goals[layer.name]
            dim = channel_dim(module)
            mean, deviation = moments.add(output, dim)
            turn = len(moments.means) - 1
            factor = correction(goal.deviations[turn], deviation, mean)
            shape = [1] * output.ndim
            shape[dim] = -1
            if not layer.shifts:
                return output * factor.view(shape)
            shift = goal.means[turn] - mean * factor
            return output * factor.view(shape) + shift.view(shape)

        return hook

    handles = [
        network.get_submodule(layer.name).register_forward_hook(correct(layer))
        for layer in layers
    ]
    norms = [
        m
        for m in network.modules()
        if isinstance(m, BatchNorm) and m.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative average
            norm.train()
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    for layer in layers:
        _fuse(network.get_submodule(layer.name), own[layer.name], goals[layer.name])


def _fuse(module: nn.Module, own: Moments, goal: Moments) -> None:
    """Make the correction, averaged over batches, part of a layer's weight and bias."""
    mean, deviation = own.overall()
    wanted_mean, wanted_deviation = goal.overall()
    factor = correction(wanted_deviation, deviation, mean)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    spread = factor.view(-1, *[1] * (weight.ndim - 1))
    weight.copy_(weight.double() * spread)
    if isinstance(bias, Tensor):
        bias.copy_((bias.double() - mean) * factor + wanted_mean)


def correction(
    wanted: Float[Tensor, " channels"],
    deviation: Float[Tensor, " channels"],
    mean: Float[Tensor, " channels"],
) -> Float[Tensor, " channels"]:
    """Return the factors that bring channels to the wanted deviations.

    A channel that is constant but for rounding has nothing to rescale: its factor is 1.
    No factor exceeds `LARGEST_FACTOR`.
    """
    typical = deviation.square().mean().sqrt()
    least = CONSTANT * torch.maximum(typical, mean.abs())
    constant = deviation <= least
    factor = wanted / torch.where(constant, 1.0, deviation)
    return torch.where(constant, 1.0, factor.clamp(max=LARGEST_FACTOR))
