"""How closely a student does what its reference does, right or wrong.

A student can be as accurate as its ensemble and still decide differently (Stanton et
al. 2021, "Does Knowledge Distillation Really Work?"): report both.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from metaensemble.core.blocks import blocks
from metaensemble.metrics.checks import (
    require_normalised,
    require_same_shape,
    require_scores,
)


def agreement(
    log_probs: Float[Tensor, "batch classes"],
    reference_log_probs: Float[Tensor, "batch classes"],
) -> float:
    """Return the fraction of examples on which both models name the same class."""
    require_scores(log_probs)
    require_scores(reference_log_probs, "reference_log_probs")
    require_same_shape(log_probs, reference_log_probs)
    same = log_probs.argmax(dim=1) == reference_log_probs.argmax(dim=1)
    return int(same.sum()) / len(same)


def kl_to(
    reference_log_probs: Float[Tensor, "batch classes"],
    log_probs: Float[Tensor, "batch classes"],
) -> float:
    """Return the mean of KL(reference || model) over examples, in nats; 0 is best.

    Note the order of the arguments, that of the formula. A class to which the
    reference gives no probability adds nothing.
    """
    return max(0.0, float(kl_each(reference_log_probs, log_probs).mean()))


def kl_each(
    reference_log_probs: Float[Tensor, "batch classes"],
    log_probs: Float[Tensor, "batch classes"],
) -> Float64[Tensor, " batch"]:
    """Return KL(reference || model) of every example, in nats; see `kl_to`."""
    require_scores(reference_log_probs, "reference_log_probs")
    require_scores(log_probs)
    require_same_shape(reference_log_probs, log_probs)
    require_normalised(reference_log_probs, "reference_log_probs")
    require_normalised(log_probs)
    pairs = zip(blocks(reference_log_probs), blocks(log_probs), strict=True)
    return torch.cat([_kl(reference, model) for reference, model in pairs])


def _kl(reference: Tensor, model: Tensor) -> Tensor:
    """Return KL(reference || model) of every row, in float64."""
    reference = reference.double()
    probs = reference.exp()
    terms = torch.where(probs > 0, probs * (reference - model.double()), 0.0)
    return terms.sum(dim=1)
