"""Ensembles trained together: no teacher to begin with.

An online method trains several networks at once, from labels, and each learns from the
others. Its learner exports them all as plain networks; the first is the one to ship.
Afterwards they stand in the report where given teachers stand otherwise.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from metaensemble.methods.contract import Learner, TrainedMethod


@dataclass(frozen=True)
class Grown:
    """One network that an online method has trained."""

    name: str
    """Its file's name, such as branch-0; letters, digits and dashes."""
    network: nn.Module
    """Plain: loads into its architecture."""
    architecture: str | None = None
    """None for the student's."""
    member: bool = True
    """Whether it is one of the ensemble; a combination of them (ONE-E) is not."""


class OnlineLearner(Learner):
    """A learner of several networks."""

    @abstractmethod
    def networks(self) -> list[Grown]:
        """Return all networks as they now stand, detached; the first is the student."""

    def export(self) -> nn.Module:
        """Return the student."""
        return self.networks()[0].network


class OnlineMethod(TrainedMethod):
    """A method that needs no teachers; the fields that all of them have."""

    fewest_members: ClassVar[int] = 0

    learning_rate: float = Field(default=0.1, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    selection: Literal["last", "best"] = "last"
    """Which state is kept: the last, or the best by the student's NLL on validation."""
