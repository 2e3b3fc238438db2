"""Pieces that adapters of features, and losses on them, have in common."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-12
"""Norms below it count as 0."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also stands a single value per channel (then by its statistics).

    torch refuses that in training; one image of one pixel is what a batch of one is to
    a multilayer perceptron.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps (batch, channels, height, width)."""
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
        )


def unit(value: Tensor) -> Tensor:
    """Return vectors (..., channels) at L2 norm 1.

    A vector of zeros stays one and gets no gradient; `torch.nn.functional.normalize`
    would give it one of 1e12.
    """
    squares = value.square().sum(-1, keepdim=True)
    some = squares > TINY**2
    return value * torch.where(some, torch.where(some, squares, 1.0).rsqrt(), 0.0)


def attention(maps: Tensor) -> Tensor:
    """Return where a network looks: the unit vector of mean squares over channels.

    Args:
        maps: (batch, channels, height, width).

    Returns:
        (batch, height * width).
    """
    return unit(maps.square().mean(1).flatten(1))
