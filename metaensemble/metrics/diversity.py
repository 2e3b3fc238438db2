"""How much members differ: without it, an ensemble is one network paid for N times."""

import torch
from jaxtyping import Float
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.metrics.checks import require_scores


def disagreement(member_log_probs: Float[Tensor, "members batch classes"]) -> float:
    """Return how often two members decide differently, in [0, 1].

    The mean over pairs of members of the fraction of examples on which the two name
    different classes (Fort et al. 2019, section 3); 0 for one member.
    """
    if member_log_probs.ndim != 3 or 0 in member_log_probs.shape:
        raise InputError(
            "member_log_probs must have shape (members, batch, classes) with at least "
            f"one of each, but has {tuple(member_log_probs.shape)}"
        )
    require_scores(member_log_probs.flatten(0, 1), "member_log_probs")
    decisions = member_log_probs.argmax(dim=2)  # (members, batch)
    first, second = torch.triu_indices(len(decisions), len(decisions), offset=1)
    if len(first) == 0:
        return 0.0
    differ = decisions[first] != decisions[second]  # (pairs, batch)
    return int(differ.sum()) / differ.numel()
