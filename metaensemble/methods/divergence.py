"""Divergences between the student's predictions and a target."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Direction = Literal["forward", "reverse"]
"""forward: KL(target || student), mass-covering; reverse: KL(student || target)."""


def kl_divergence(
    log_target: Float[Tensor, "batch classes"],
    log_student: Float[Tensor, "batch classes"],
    direction: Direction = "forward",
) -> Float[Tensor, ""]:
    """Return the mean over the batch of the KL divergence, in nats.

    Reverse is equation 1 of Fei et al. 2022 as printed; forward is Hinton et al. 2015
    up to the target's entropy.
    """
    if direction == "reverse":
        log_target, log_student = log_student, log_target
    return F.kl_div(log_student, log_target, reduction="batchmean", log_target=True)


def label_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the labelled images of the batch (0 if none).

    Unlabelled images carry the label -1.
    """
    total = F.cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return total / (labels >= 0).sum().clamp_min(1)
