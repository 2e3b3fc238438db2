"""The contract of everything that is trained.

A method is a frozen config. ``method.learner(student, teachers)`` gives a module whose
``forward(batch)`` returns the named parts of the loss and whose ``export()`` returns
the one deployable network. Whatever a method needs during training only (branches,
discriminators, a generator of weights) lives inside its learner. The engine knows
nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.method import Method
from metaensemble.teachers import Ensemble


@dataclass(frozen=True)
class Batch:
    """What a learner sees in one step; all tensors are on the learner's device."""

    step: int
    """Number of the step, from 0; the randomness of a step is a function of it."""
    inputs: Float[Tensor, "batch channels height width"]
    """Augmented images, normalised for the student."""
    labels: Int[Tensor, " batch"]
    """Classes; -1 where the label is unknown."""
    teacher_logits: Float[Tensor, "members batch classes"] | None = None
    """The teachers' cached logits for these very images; None without teachers."""


class Learner(nn.Module, ABC):
    """A module under training: its parameters are what the optimizer updates.

    Everything that training changes must be in its state dict, since checkpoints hold
    nothing else of it.
    """

    stale_statistics: ClassVar[bool] = False
    """Whether batch-norm statistics must be re-estimated after `export`."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, scalars; their sum is minimised."""

    @abstractmethod
    def export(self) -> nn.Module:
        """Return the deployable network as it now stands, detached from training."""


class TrainedMethod(Method):
    """A method that trains; the fields that all of them have."""

    epochs: float = Field(default=20, gt=0)
    """Passes over the distillation images."""
    batch_size: int = Field(default=128, ge=1)
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov momentum 0.9."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """On tensors of two or more dimensions."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps with a linearly rising rate."""
    clip: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient."""
    views: int = Field(default=8, ge=0)
    """Different augmented copies of each image, re-used in turn, so that the teachers
    see each once; 0 augments anew in every epoch."""
    selection: Literal["last", "best"] = "best"
    """Which state is kept: the last, or the best by KL to the ensemble (by NLL where
    there is none) on the validation split."""

    @property
    def augments(self) -> bool:
        """Return whether images are augmented as the data says."""
        return True

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> Learner:
        """Return the module to train.

        Args:
            student: the network to be trained or written; on the device to be used.
            teachers: whose logits the batches bring; None for supervised training.
        """
        raise NotImplementedError


class StudentLearner(Learner):
    """A learner that trains the student itself, by a loss on its logits."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def export(self) -> nn.Module:
        """Return the student."""
        return self.student
