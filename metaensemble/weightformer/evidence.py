"""Data tokens: what a few hundred unlabelled images tell about teachers and reference.

Weights say what a network is; these say what it does, and what its ensemble would want
changed. Beyond Fei et al. (2022). Computed once per set of teachers, before the one
forward pass of the generator; its cost is that of N forward passes and one backward
pass over the images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.states import State
from metaensemble.weightformer.tokens import LayerSpec, TokenSpec

FEATURES = 4
"""Numbers per channel and teacher: mean, deviation, share above zero, correlation with
the mean of all teachers' channels."""
SMALLEST = 1e-8


@dataclass(frozen=True)
class Evidence:
    """What the generator may read besides weights.

    Attributes:
        gradient: of the distillation loss at the reference, by parameter.
        activity: per layer of the spec, (teachers, rows, `FEATURES`): statistics of the
            layer's outputs, in units of their root mean square; zero for what has no
            such outputs.
    """

    gradient: State
    activity: tuple[Tensor, ...]


def gather_evidence(
    network: nn.Module,
    spec: TokenSpec,
    reference: Mapping[str, Tensor],
    teachers: Sequence[Mapping[str, Tensor]],
    inputs: Float[Tensor, "images channels height width"],
    loss: Callable[[Tensor], Tensor],
) -> Evidence:
    """Return the evidence of one set of teachers.

    Batch-norm layers use the images' own statistics, so that a reference with stale
    ones is judged fairly; no running statistic is changed.

    Args:
        network: of the architecture; only its structure is used.
        spec: its tokens.
        reference: the weights at which the gradient is taken.
        teachers: in the order of the generator's input.
        inputs: normalised images.
        loss: of the reference's logits, a scalar.
    """
    names = list(spec.shapes)
    at = {name: reference[name].detach().clone().requires_grad_() for name in names}
    logits = _run(network, spec, {**reference, **at}, inputs)
    gradients = torch.autograd.grad(
        loss(logits), [at[name] for name in names], allow_unused=True
    )
    gradient = {
        name: torch.zeros_like(at[name]) if found is None else found.detach()
        for name, found in zip(names, gradients, strict=True)
    }
    means = [_channel_means(network, spec, state, inputs) for state in teachers]
    activity = []
    for index, layer in enumerate(spec.layers):
        found = [of_one[index] for of_one in means]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            activity.append(inputs.new_zeros(len(found), layer.rows, FEATURES))
        else:
            activity.append(_features(torch.stack(known)))
    return Evidence(gradient, tuple(activity))


def _run(
    network: nn.Module, spec: TokenSpec, state: Mapping[str, Tensor], inputs: Tensor
) -> Float[Tensor, "images classes"]:
    ties = {alias: state[name] for alias, name in spec.ties.items()}
    training = network.training
    network.train()
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    try:
        return functional_call(network, {**state, **ties, **buffers}, (inputs,))
    finally:
        network.train(training)


@torch.no_grad()
def _channel_means(
    network: nn.Module, spec: TokenSpec, state: Mapping[str, Tensor], inputs: Tensor
) -> list[Tensor | None]:
    """Return per layer each image's mean output of each channel, (images, rows)."""
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    handles = []
    for layer in spec.layers:
        if layer.name in modules:
            hook = _recorder(found, layer)
            handles.append(modules[layer.name].register_forward_hook(hook))
    try:
        _run(network, spec, state, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [found.get(layer.name) for layer in spec.layers]


def _recorder(found: dict[str, Tensor], layer: LayerSpec) -> Callable[..., None]:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2:
            return
        channels = 1 if output.ndim == 4 else output.ndim - 1
        if output.shape[channels] == layer.rows:
            rows = output.movedim(channels, -1)
            found[layer.name] = rows.flatten(1, -2).mean(1) if rows.ndim > 2 else rows

    return record


def _features(
    means: Float[Tensor, "teachers images rows"],
) -> Float[Tensor, "teachers rows features"]:
    scale = means.square().mean().sqrt().clamp_min(SMALLEST)
    scaled = means / scale
    mean, deviation = scaled.mean(1), scaled.std(1, correction=0)
    above = (means > 0).float().mean(1) - 0.5
    centred = scaled - mean[:, None]
    common = centred.mean(0)
    product = (centred * common).mean(1)
    spread = deviation * common.square().mean(0).sqrt()
    correlation = product / spread.clamp_min(SMALLEST)
    return torch.stack([mean, deviation, above, correlation], dim=-1)
