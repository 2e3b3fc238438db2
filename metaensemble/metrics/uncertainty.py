"""How unsure a prediction is, and why: the data are ambiguous, or knowledge is lacking.

In nats, one number per image: total = data + knowledge (Depeweg et al. 2018, Malinin
and Gales 2018). Knowledge is high on images unlike those of the training, on which
members disagree; data where they agree that several classes are likely.
"""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from metaensemble.core.errors import InputError


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of each image's prediction, in nats (float64)."""

    total: Float64[Tensor, " batch"]
    """Entropy of the mean prediction, in [0, log classes]."""
    data: Float64[Tensor, " batch"]
    """Expected entropy: what remains if the true network were known."""
    knowledge: Float64[Tensor, " batch"]
    """The difference: mutual information of class and network, not negative."""


def ensemble_uncertainty(
    member_log_probs: Float[Tensor, "members batch classes"],
) -> Uncertainty:
    """Return the uncertainty of an ensemble of equally weighted members."""
    if member_log_probs.ndim != 3 or 0 in member_log_probs.shape:
        raise InputError(
            "member_log_probs must have shape (members, batch, classes) with at least "
            f"one of each, but has {tuple(member_log_probs.shape)}"
        )
    log_probs = member_log_probs.double().log_softmax(-1)
    total = _entropy(log_probs.exp().mean(0))
    data = _entropy(log_probs.exp()).mean(0)
    return Uncertainty(total, data, (total - data).clamp_min(0))


def dirichlet_uncertainty(logits: Float[Tensor, "batch classes"]) -> Uncertainty:
    """Return the uncertainty of a network whose logits are the log of a Dirichlet.

    For students of the method ``ensemble_distribution``: with alpha = exp(logits) and
    a = sum alpha, the mean prediction is alpha / a = softmax(logits), and the expected
    entropy is sum_c alpha_c / a (digamma(a + 1) - digamma(alpha_c + 1)) (Malinin and
    Gales 2018, arXiv 1802.10501, appendix C). Logits of any other network have no such
    meaning.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(
            "logits must have shape (batch, classes) with at least one of each, but "
            f"have {tuple(logits.shape)}"
        )
    scores = logits.double()
    alpha, mean = scores.exp(), scores.softmax(-1)
    whole = alpha.sum(-1, keepdim=True)
    total = _entropy(mean)
    data = (mean * ((whole + 1).digamma() - (alpha + 1).digamma())).sum(-1)
    return Uncertainty(total, data, (total - data).clamp_min(0))


def _entropy(probabilities: Tensor) -> Tensor:
    return -probabilities.xlogy(probabilities).sum(-1)
