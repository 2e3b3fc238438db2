"""Plain training on labels: how members are taught."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import (
    Batch,
    Perturbation,
    StudentLearner,
    TrainedMethod,
)
from metaensemble.methods.divergence import label_loss
from metaensemble.teachers import Ensemble


class Supervised(TrainedMethod):
    """Cross-entropy with the labels."""

    summary: ClassVar[str] = "train a network on labels"
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    cost: ClassVar[str] = "one training"

    name: Literal["supervised"] = "supervised"
    """The method's name."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Mass moved from the label to all classes evenly."""
    selection: Literal["last", "best"] = "last"
    """Which state is kept: the last, or the best by NLL on the validation split."""

    @field_validator("perturbation")
    @classmethod
    def _without_teachers(cls, perturbation: Perturbation) -> Perturbation:
        if perturbation != "none":
            raise InputError(
                "images can be moved to where teachers differ only if there are "
                f"teachers, but --perturbation is {perturbation} where networks are "
                "trained on labels; leave it out"
            )
        return perturbation

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> StudentLearner:
        """Return the learner; teachers are not used."""
        return _SupervisedLearner(self, student)


class _SupervisedLearner(StudentLearner):
    def __init__(self, config: Supervised, student: nn.Module):
        super().__init__(student)
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        logits = self.student(batch.inputs)
        smoothing = self.config.label_smoothing
        return {"label": label_loss(logits, batch.labels, smoothing)}
