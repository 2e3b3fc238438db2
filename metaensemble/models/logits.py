"""The logits of a network multiplied by a number, inside its last linear layer."""

import copy

import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.models.shapes import InputShape
from metaensemble.models.taps import penultimate


@torch.no_grad()
def with_scaled_logits(
    network: nn.Module, input_shape: InputShape, factor: float
) -> nn.Module | None:
    """Return a copy of a network whose logits are `factor` times its own.

    Weight and bias of the last linear layer are multiplied; on random images it is
    proved that this multiplies the logits. None if it does not, or if there is no such
    layer.

    Args:
        network: left as it is.
        input_shape: channels, height, width.
        factor: above 0.
    """
    scaled = copy.deepcopy(network).eval()
    try:
        head = scaled.get_submodule(penultimate(scaled, input_shape).module)
    except InputError:
        return None
    for parameter in head.parameters(recurse=False):
        parameter *= factor
    images = torch.randn(4, *input_shape, generator=generator("logits"))
    first = next(network.parameters())
    images = images.to(first)
    mode = network.training
    wanted = network.eval()(images) * factor
    network.train(mode)
    size = float(wanted.abs().max())
    close = torch.allclose(scaled(images), wanted, rtol=1e-4, atol=1e-5 * size)
    return scaled if close else None
