"""How often the decision is right."""

from jaxtyping import Float, Int64
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.metrics.checks import require_labels, require_scores


def accuracy(
    log_probs: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> float:
    """Return the fraction of examples whose most probable class is the label."""
    require_scores(log_probs)
    require_labels(log_probs, labels)
    return int((log_probs.argmax(dim=1) == labels).sum()) / len(labels)


def top_k(
    log_probs: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    k: int = 5,
) -> float:
    """Return the fraction of examples whose label is among the `k` most probable.

    `k` is capped at the number of classes, where the answer is 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, but is {k}")
    require_scores(log_probs)
    require_labels(log_probs, labels)
    best = log_probs.topk(min(k, log_probs.shape[1]), dim=1).indices
    return int((best == labels[:, None]).any(dim=1).sum()) / len(labels)
