"""Do the members descend from one start? Weight averages make sense only if so."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.teachers.ensemble import Ensemble

COSINE_OF_KIN = 0.4
"""Mean cosine above which members count as kin.

Independent random weights of d parameters have a cosine of about d**-0.5, fine-tunes of
one start 0.6 and more (measured: benchmarks/digits, benchmarks/cifar10_small).
"""


class Kinship(Config):
    """Whether members share a start, and on what evidence."""

    one_start: bool
    """Whether the members descend from common initial weights."""
    cosine: float
    """Mean cosine over pairs of members, of all weights of two or more dimensions."""
    recorded: bool
    """Whether the members' records say so; otherwise the cosine decides."""

    @property
    def regime(self) -> Literal["one-start", "independent"]:
        """Return the name that reports use."""
        return "one-start" if self.one_start else "independent"


def kinship(ensemble: Ensemble) -> Kinship:
    """Return whether the members of one architecture share a start.

    The members' recorded starts decide where all have one; else the mean cosine.

    Raises:
        InputError: the members differ in architecture.
    """
    states = ensemble.lazy_states("members must share one architecture to be compared")
    cosine = mean_cosine(states)
    starts = [member.info.start for member in ensemble.members]
    recorded = all(start is not None for start in starts)
    one_start = len(set(starts)) == 1 if recorded else cosine > COSINE_OF_KIN
    return Kinship(one_start=one_start, cosine=cosine, recorded=recorded)


def mean_cosine(states: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the mean over pairs of the cosine of the flattened weight matrices.

    Of lazy states, one tensor of every member is in memory at a time.
    """
    products = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name, like in states[0].items():
        if like.ndim > 1 and like.is_floating_point():
            rows = torch.stack([state[name].flatten().double() for state in states])
            products += rows @ rows.T
    norms = products.diagonal().sqrt().clamp_min(1e-12)
    cosines = products / norms[:, None] / norms
    above = torch.triu_indices(len(states), len(states), 1)
    return float(cosines[*above].mean()) if len(states) > 1 else 1.0
