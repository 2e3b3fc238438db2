"""What every metric asks of its arguments, in one place and with one wording."""

import torch
from torch import Tensor

from metaensemble.core.blocks import blocks
from metaensemble.core.errors import InputError


def require_scores(scores: Tensor, name: str = "log_probs") -> None:
    """Raise `InputError` unless `scores` is a finite-or-``-inf`` (batch, classes).

    Args:
        scores: log-probabilities or logits.
        name: how the message calls them.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise InputError(
            f"{name} must have shape (batch, classes) with at least one of each, "
            f"but has {tuple(scores.shape)}; check that the set is not empty"
        )
    highest = scores.amax(dim=1)  # NaN where a row has one
    broken = highest.isnan() | highest.isposinf()
    if bool(broken.any()):
        raise InputError(
            f"{name} must be numbers, but {int(broken.sum())} of {len(scores)} rows "
            "hold NaN or +infinity; the model has diverged, train it again with a "
            "lower learning rate"
        )


def require_labels(scores: Tensor, labels: Tensor) -> None:
    """Raise `InputError` unless `labels` names one of the classes for every row."""
    if labels.shape != scores.shape[:1]:
        raise InputError(
            f"labels must have shape ({len(scores)},), one for each row of scores, "
            f"but has {tuple(labels.shape)}; take both from the same split"
        )
    if labels.dtype != torch.int64:
        raise InputError(
            f"labels must be int64 class numbers, but are {labels.dtype}; "
            "convert them with labels.long()"
        )
    low, high, classes = int(labels.min()), int(labels.max()), scores.shape[1]
    if low < 0 or high >= classes:
        raise InputError(
            f"labels must lie in 0..{classes - 1}, but range from {low} to {high}; "
            "the model and the data must have the same classes"
        )


def require_normalised(log_probs: Tensor, name: str = "log_probs") -> None:
    """Raise `InputError` unless the probabilities of every row add up to about 1."""
    sums = torch.cat([rows.float().exp().sum(dim=1) for rows in blocks(log_probs)])
    worst = float(sums[(sums - 1).abs().argmax()])
    if abs(worst - 1) > 0.02:  # bfloat16 log-probabilities pass, logits do not
        raise InputError(
            f"{name} must be log-probabilities, whose exponentials add up to 1, but a "
            f"row adds up to {worst:.4g}; apply log_softmax to logits first"
        )


def require_same_shape(left: Tensor, right: Tensor) -> None:
    """Raise `InputError` unless two models' outputs are for the same examples."""
    if left.shape != right.shape:
        raise InputError(
            f"both models' outputs must have one shape, but they have "
            f"{tuple(left.shape)} and {tuple(right.shape)}; evaluate both on one split"
        )
