"""Do the members descend from one start? Weight averages make sense only if so."""

import itertools
from typing import Literal

import torch

from metaensemble.core.config import Config
from metaensemble.core.states import State
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
    states = ensemble.states("members must share one architecture to be compared")
    cosine = mean_cosine(states)
    starts = [member.info.start for member in ensemble.members]
    recorded = all(start is not None for start in starts)
    one_start = len(set(starts)) == 1 if recorded else cosine > COSINE_OF_KIN
    return Kinship(one_start=one_start, cosine=cosine, recorded=recorded)


def mean_cosine(states: list[State]) -> float:
    """Return the mean over pairs of the cosine of the flattened weight matrices."""
    names = [n for n, t in states[0].items() if t.ndim > 1 and t.is_floating_point()]
    flat = [torch.cat([s[n].float().flatten() for n in names]) for s in states]
    unit = [row / row.norm().clamp_min(1e-12) for row in flat]
    cosines = [float(a @ b) for a, b in itertools.combinations(unit, 2)]
    return sum(cosines) / len(cosines) if cosines else 1.0
