"""What a network costs by the channels it keeps, and which to keep under a budget."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.methods.compaction import Channels
from metaensemble.metrics import macs, parameters
from metaensemble.models import InputShape
from metaensemble.models.slim import NORMS


class CostModel:
    """What a network costs, exactly, by the number of live channels per group.

    cost = constant + sum over layers of outputs (product inputs + linear), where the
    numbers of inputs and outputs are linear in the live channels.
    """

    def __init__(
        self, channels: Channels, product: Tensor, linear: Tensor, total: int
    ) -> None:
        layers = list(channels.layers.values())
        spans = [_spans(channels, [x.inputs for x in layers])]
        spans.append(_spans(channels, [x.outputs for x in layers]))
        (self._fan_in, self._rest_in), (self._fan_out, self._rest_out) = spans
        for row, layer in enumerate(layers):
            if layer.groups > 1:  # its inputs per group do not change
                self._fan_in[row] = 0
                self._rest_in[row] = len(layer.inputs) / layer.groups
        self._product, self._linear = product, linear
        self.constant = 0.0
        self.sizes = torch.tensor(channels.sizes, dtype=torch.float64)
        self.full = total
        """Cost of the whole network."""
        self.constant = total - float(self(self.sizes))

    def __call__(self, live: Tensor) -> Tensor:
        """Return the cost, float64, of fractional numbers (groups,) of channels."""
        live = live.to(torch.float64)
        inputs = self._rest_in.to(live) + self._fan_in.to(live) @ live
        outputs = self._rest_out.to(live) + self._fan_out.to(live) @ live
        costs = outputs * (self._product.to(live) * inputs + self._linear.to(live))
        return self.constant + costs.sum()

    def savings(self, live: Tensor) -> Tensor:
        """Return (groups,): what one channel less of each group saves."""
        inputs = self._rest_in + self._fan_in @ live
        outputs = self._rest_out + self._fan_out @ live
        each = inputs[:, None] * self._fan_out + outputs[:, None] * self._fan_in
        each = self._product[:, None] * (each - self._fan_in * self._fan_out)
        return (each + self._linear[:, None] * self._fan_out).sum(0)


def macs_model(
    network: nn.Module, channels: Channels, input_shape: InputShape
) -> CostModel:
    """Return the multiply-accumulates of an image, as `metrics.macs` counts them."""
    positions = dict.fromkeys(channels.layers, 0)
    handles = []
    for name in channels.layers:

        def after(_: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            positions[name] += out.numel() // len(channels.layers[name].outputs)

        hook = network.get_submodule(name).register_forward_hook(after)
        handles.append(hook)
    try:
        total = macs(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    product = [
        0 if _is_norm(network, name) else positions[name] * _kernel(network, name)
        for name in channels.layers
    ]
    linear = torch.zeros(len(product), dtype=torch.float64)
    return CostModel(
        channels, torch.tensor(product, dtype=torch.float64), linear, total
    )


def parameters_model(network: nn.Module, channels: Channels) -> CostModel:
    """Return the number of parameters, as `metrics.parameters` counts them."""
    product, linear = [], []
    for name in channels.layers:
        module = network.get_submodule(name)
        norm = _is_norm(network, name)
        vectors = [p for p in module.parameters() if p.ndim == 1]
        product.append(0 if norm else _kernel(network, name))
        linear.append(len(vectors))
    return CostModel(
        channels,
        torch.tensor(product, dtype=torch.float64),
        torch.tensor(linear, dtype=torch.float64),
        parameters(network),
    )


def smallest(channels: Channels, least: float) -> Tensor:
    """Return float64 (groups,): the fewest channels that may stay."""
    fewest = [max(1, math.ceil(least * size)) for size in channels.sizes]
    return torch.tensor(fewest, dtype=torch.float64)


def choose(
    channels: Channels,
    importance: Tensor,
    budgets: Sequence[tuple[CostModel, float]],
    least: float,
) -> Tensor:
    """Return which channels stay, bool (channels,), so that all budgets hold.

    One after another goes the channel of the least importance per cost saved; then
    those that still fit come back, the last to go first.

    Args:
        channels: of the network.
        importance: (channels,), what is lost without each.
        budgets: costs, and what each may come to; `smallest` must be within them.
        least: fraction of each group that stays at the least.
    """
    importance = importance.detach().double().cpu()
    fewest = smallest(channels, least)
    parts = importance.split(channels.sizes)
    orders = [part.argsort(stable=True) for part in parts]  # the least important first
    live = torch.tensor(channels.sizes, dtype=torch.float64)
    gone: list[int] = []
    while over := [(m, most) for m, most in budgets if float(m(live)) > most]:
        saved = torch.stack([m.savings(live) / most for m, most in over]).sum(0)
        next_ = [
            part[order[size - int(n)]] if n > few else torch.tensor(math.inf)
            for part, order, size, n, few in zip(
                parts, orders, channels.sizes, live, fewest, strict=True
            )
        ]
        worth = torch.stack(next_).double() / saved.clamp_min(1e-30)
        worth[live <= fewest] = math.inf
        worst = int(worth.argmin())
        assert math.isfinite(float(worth[worst])), "the smallest student must fit"
        live[worst] -= 1
        gone.append(worst)
    for group in reversed(gone):
        live[group] += 1
        if any(float(model(live)) > most for model, most in budgets):
            live[group] -= 1
    masks = []
    for order, size, n in zip(orders, channels.sizes, live, strict=True):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[order[size - int(n) :]] = True
        masks.append(mask)
    return torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)


def _spans(channels: Channels, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return float64 (layers, groups), entries per channel, and (layers,), the rest."""
    of = torch.repeat_interleave(torch.tensor(channels.sizes, dtype=torch.int64))
    spans = torch.zeros(len(maps), len(channels.sizes), dtype=torch.float64)
    rest = torch.zeros(len(maps), dtype=torch.float64)
    for row, entries in enumerate(maps):
        known = entries[entries >= 0]
        counts = torch.bincount(of[known], minlength=len(channels.sizes))
        spans[row] = counts / torch.tensor(channels.sizes)
        rest[row] = len(entries) - len(known)
    return spans, rest


def _kernel(network: nn.Module, name: str) -> int:
    weight = network.get_parameter(f"{name}.weight")
    return math.prod(weight.shape[2:])


def _is_norm(network: nn.Module, name: str) -> bool:
    return type(network.get_submodule(name)) in NORMS
