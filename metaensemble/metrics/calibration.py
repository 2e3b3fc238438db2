"""Whether a confidence of 0.8 means right in 8 of 10 cases, and how to mend it."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from metaensemble.core.blocks import blocks
from metaensemble.core.errors import InputError
from metaensemble.metrics.checks import (
    require_labels,
    require_normalised,
    require_scores,
)

TEMPERATURES = (0.01, 100.0)
"""The range in which `fit_temperature` looks."""


def expected_calibration_error(
    log_probs: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    bins: int = 15,
) -> float:
    """Return the expected calibration error in [0, 1]; 0 is best.

    Examples are sorted by their top probability into `bins` right-closed intervals
    (lo, hi] of equal width; the gap between mean confidence and accuracy of each bin
    is weighted by its share of the examples (Guo et al. 2017, equation 3). The whole
    set is binned at once: the mean over minibatches would be another, larger number.
    """
    confidence, correct, count = reliability(log_probs, labels, bins)
    gaps = (confidence - correct).abs()
    return min(1.0, float((gaps * count).sum() / count.sum()))


def reliability(
    log_probs: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    bins: int = 15,
) -> tuple[Float64[Tensor, " bins"], Float64[Tensor, " bins"], Int64[Tensor, " bins"]]:
    """Return mean confidence, accuracy and number of examples of each bin.

    The bins are those of `expected_calibration_error`; an empty bin has count,
    confidence and accuracy 0.
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, but is {bins}")
    require_scores(log_probs)
    require_labels(log_probs, labels)
    require_normalised(log_probs)
    top, decision = log_probs.max(dim=1)
    confidence = top.double().exp()
    correct = (decision == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=top.device)
    place = torch.bucketize(confidence, edges[1:-1])  # right-closed: a < c <= b
    count = torch.bincount(place, minlength=bins)
    divisor = count.clamp_min(1)
    return (
        torch.bincount(place, confidence, minlength=bins) / divisor,
        torch.bincount(place, correct, minlength=bins) / divisor,
        count,
    )


def fit_temperature(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> float:
    """Return the temperature T that minimises the NLL of ``softmax(logits / T)``.

    Decisions stay as they are; fit on validation data, never on test data (Guo et al.
    2017, section 4.2). The NLL is convex in 1/T, so bisection of its derivative finds
    the one minimum; T lies in `TEMPERATURES`, and its NLL is never above that of T=1.
    """
    require_scores(logits, "logits")
    require_labels(logits, labels)
    scores = logits.double()
    target = scores.gather(1, labels[:, None]).squeeze(1)

    def expected(rows: Tensor, scale: float) -> Tensor:
        probs = F.softmax(rows * scale, dim=1)
        return torch.where(probs > 0, probs * rows, 0.0).sum(dim=1)

    def slope(scale: float) -> float:  # d NLL / d (1/T)
        each = torch.cat([expected(rows, scale) for rows in blocks(scores)])
        return float((each - target).mean())

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scores * scale, labels))

    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):  # halves the range in log T: 9.2 * 2^-50 is below rounding
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    scale = math.exp((low + high) / 2)
    return 1 / scale if loss(scale) < loss(1.0) else 1.0
