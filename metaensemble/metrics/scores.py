"""Proper scoring rules: they reward honest probabilities, not only right decisions."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from metaensemble.core.blocks import blocks
from metaensemble.metrics.checks import (
    require_labels,
    require_normalised,
    require_scores,
)


def nll(
    log_probs: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> float:
    """Return the mean negative log-probability of the label, in nats; 0 is best."""
    _require(log_probs, labels)
    chosen = log_probs.gather(1, labels[:, None])
    return max(0.0, -float(chosen.double().mean()))


def brier(
    log_probs: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> float:
    """Return the Brier score in [0, 2]; 0 is best.

    The mean over examples of the sum over classes of the squared error between
    probability and one-hot label (Brier 1950). Some packages divide by the number of
    classes, or by 2 for two classes; this is the undivided original.
    """
    _require(log_probs, labels)
    return max(0.0, float(brier_each(log_probs, labels).mean()))


def brier_each(
    log_probs: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float64[Tensor, " batch"]:
    """Return the Brier score of every example, up to rounding in [0, 2]."""
    chosen = log_probs.gather(1, labels[:, None]).squeeze(1).double().exp()
    squares = [rows.double().exp().square().sum(dim=1) for rows in blocks(log_probs)]
    # sum_c (p_c - [c = y])^2 = sum_c p_c^2 - 2 p_y + 1, without a one-hot matrix
    return torch.cat(squares) - 2 * chosen + 1


def _require(log_probs: Tensor, labels: Tensor) -> None:
    require_scores(log_probs)
    require_labels(log_probs, labels)
    require_normalised(log_probs)
