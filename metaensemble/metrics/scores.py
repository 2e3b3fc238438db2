"""Proper scoring rules: they reward honest probabilities, not only right decisions."""

from jaxtyping import Float, Int64
from torch import Tensor

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
    probs = log_probs.double().exp()
    chosen = probs.gather(1, labels[:, None]).squeeze(1)
    # sum_c (p_c - [c = y])^2 = sum_c p_c^2 - 2 p_y + 1, without a one-hot matrix
    return max(0.0, float((probs.square().sum(dim=1) - 2 * chosen + 1).mean()))


def _require(log_probs: Tensor, labels: Tensor) -> None:
    require_scores(log_probs)
    require_labels(log_probs, labels)
    require_normalised(log_probs)
