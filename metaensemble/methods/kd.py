"""Knowledge distillation from the mean of the teachers, or from each."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, StudentLearner
from metaensemble.methods.distillation import Distillation, tempered_kl
from metaensemble.methods.divergence import Direction, label_loss
from metaensemble.teachers import Ensemble


class KD(Distillation):
    """Hinton et al. 2015 with the ensemble as the teacher.

    loss = (1 - w) T^2 KL(teachers at T, student at T) + w CE(labels, student)
    """

    summary: ClassVar[str] = "distil the mean of the teachers into a student"
    paper: ClassVar[str] = "Hinton, Vinyals, Dean 2015 (arXiv 1503.02531)"
    needs: ClassVar[tuple[str, ...]] = ("images",)
    cost: ClassVar[str] = "one training; teachers see each image `views` times"

    name: Literal["kd"] = "kd"
    """The method's name."""
    temperature: float = Field(default=2.0, gt=0)
    """T: both distributions are softened by it; the loss is scaled by T^2."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """w: weight of the labels' cross-entropy."""
    direction: Direction = "forward"
    """forward: KL(teacher || student); reverse: KL(student || teacher)."""
    target: Literal["ensemble", "each"] = "ensemble"
    """ensemble: one divergence, to the members' average (of probabilities or logits, as
    --average says); each: the mean of the divergences to each member, which for forward
    KL has the gradient of the average of probabilities, for reverse KL has not."""

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> StudentLearner:
        """Return the learner of `student`."""
        return _KDLearner(self, student, teachers or Ensemble(()))


class _KDLearner(StudentLearner):
    def __init__(self, config: KD, student: nn.Module, teachers: Ensemble):
        super().__init__(student)
        self.teachers = teachers
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distillation term and, if it has weight, the label term."""
        assert batch.teacher_logits is not None
        config = self.config
        temperature, weight = config.temperature, config.label_weight
        logits = self.student(batch.inputs)
        if config.target == "ensemble":
            targets, shares = (
                [self.teachers.log_probs(batch.teacher_logits, temperature)],
                (1.0,),
            )
        else:
            targets = list((batch.teacher_logits / temperature).log_softmax(-1))
            shares = self.teachers.shares if len(self.teachers) else _alike(targets)
        terms = [
            share * tempered_kl(target, logits, temperature, config.direction)
            for share, target in zip(shares, targets, strict=True)
        ]
        losses = {"distillation": (1 - weight) * torch.stack(terms).sum()}
        if weight:
            known = logits if batch.clean is None else self.student(batch.clean)
            losses["label"] = weight * label_loss(known, batch.labels)
        return losses


def _alike(targets: list[Tensor]) -> tuple[float, ...]:
    return (1 / len(targets),) * len(targets)
