"""Ensembles trained together: no teacher to begin with.

An online method trains several networks at once, from labels, and each learns from the
others. Its learner exports them all as plain networks; the first is the one to ship.
Afterwards they stand in the report where given teachers stand otherwise.
"""

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Learner, Perturbation, Task, TrainedMethod
from metaensemble.models import init_model


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


def detached(network: nn.Module) -> nn.Module:
    """Return a network as it now stands: a copy, in eval mode."""
    return copy.deepcopy(network).eval()


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
    takes_members: ClassVar[bool] = False
    """Whether it can do something with members, too, as `fuse` gives them."""

    learning_rate: float = Field(default=0.1, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    selection: Literal["last", "best"] = "last"
    """Which state is kept: the last, or the best by the student's NLL on validation."""

    @field_validator("perturbation")
    @classmethod
    def _without_teachers(cls, perturbation: Perturbation) -> Perturbation:
        if perturbation != "none":
            raise InputError(
                "images can be moved to where teachers differ only if there are "
                f"teachers, but --perturbation is {perturbation} where networks are "
                "trained together; leave it out"
            )
        return perturbation


def other_networks(
    student: nn.Module, task: Task, count: int, architecture: str | None = None
) -> list[nn.Module]:
    """Return so many fresh networks, of other initial weights than the student's.

    Their seeds are drawn from the global generator.

    Args:
        student: whose device and type they have.
        task: tells input and classes.
        count: how many.
        architecture: default: the student's.
    """
    first = next(student.parameters())
    text = architecture or task.architecture
    return [
        init_model(text, task.num_classes, task.input_shape, seed).to(first)
        for seed in torch.randint(2**62, (count,)).tolist()
    ]
