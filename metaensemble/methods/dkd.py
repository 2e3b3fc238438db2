"""Decoupled knowledge distillation."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Batch, Stage, StudentLearner, Task
from metaensemble.methods.distillation import Distillation
from metaensemble.methods.divergence import label_loss
from metaensemble.teachers import Ensemble


class DKD(Distillation):
    """Zhao et al. 2022 with the ensemble as the teacher.

    loss = ramp (alpha TCKD + beta NCKD) + label_weight CE(labels, student)

    Hinton's T^2 KL(q_t || q_s) is TCKD + (1 - q_t[y]) NCKD (equation 7): TCKD is
    the divergence of (class y, all others), NCKD that of the other classes among
    themselves. Here the two are weighed freely, so that a confident teacher's dark
    knowledge is not weighed down by 1 - q_t[y]. q_t are the ensemble's probabilities
    at T; y is the label, or, where it is unknown, the ensemble's first class.
    """

    summary: ClassVar[str] = (
        "distil the labelled class and the others among themselves apart"
    )
    paper: ClassVar[str] = "Zhao, Cui, Song, Qiu, Liang 2022 (arXiv 2203.08679)"
    needs: ClassVar[tuple[str, ...]] = ("images", "labels")
    cost: ClassVar[str] = "one training; teachers see each image `views` times"

    name: Literal["dkd"] = "dkd"
    """The method's name."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of TCKD, the labelled class against the rest."""
    beta: float = Field(default=8.0, ge=0)
    """Weight of NCKD, the other classes among themselves; the paper takes 2 to 8 on
    CIFAR-100 (more for more confident teachers) and 0.5 on ImageNet (with T = 1)."""
    temperature: float = Field(default=4.0, gt=0)
    """T: all distributions are softened by it; the terms are scaled by T^2."""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the labels' cross-entropy."""
    ramp: float = Field(default=1 / 12, ge=0, le=1)
    """Fraction of the training over which the weight of TCKD and NCKD rises linearly
    to its value; the paper: 20 of 240 epochs."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training.

        Raises:
            InputError: there are fewer than three classes.
        """
        classes = len(teachers.info.classes)
        if classes < 3:
            raise InputError(
                "dkd must have at least 3 classes, since it compares those that are "
                f"not the label's, but there are {classes}; choose --method kd"
            )
        learner = _DKDLearner(self, student, teachers, self.ramp * task.steps(self))
        yield Stage(self.name_, self, learner)


class _DKDLearner(StudentLearner):
    def __init__(
        self, config: DKD, student: nn.Module, teachers: Ensemble, ramp_steps: float
    ):
        super().__init__(student)
        self.config = config
        self.teachers = teachers
        self.ramp_steps = ramp_steps

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return both parts of the distillation and, if it has weight, the labels'."""
        assert batch.teacher_logits is not None
        config = self.config
        logits = self.student(batch.inputs)
        target = self.teachers.log_probs(batch.teacher_logits, config.temperature)
        labels = torch.where(batch.labels < 0, target.argmax(-1), batch.labels)
        own, others = decoupled_kl(target, logits, labels, config.temperature)
        ramp = min((batch.step + 1) / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        losses = {
            "labelled_class": ramp * config.alpha * own.mean(),
            "other_classes": ramp * config.beta * others.mean(),
        }
        if config.label_weight:
            known = logits if batch.clean is None else self.student(batch.clean)
            losses["label"] = config.label_weight * label_loss(known, batch.labels)
        return losses


def decoupled_kl(
    target: Tensor, logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD per image, both times T^2, in nats (equations 4 to 6).

    In log space throughout: neither certain teachers nor certain students give an
    infinite loss, and no constant stands in for minus infinity.

    Args:
        target: (batch, classes), log-probabilities of the ensemble at T.
        logits: (batch, classes), of the student.
        labels: (batch,), none unknown.
        temperature: T.

    Returns:
        TCKD (batch,) and NCKD (batch,).
    """
    student = (logits / temperature).log_softmax(-1)
    pair_t, others_t = _decoupled(target, labels)
    pair_s, others_s = _decoupled(student, labels)
    scale = temperature**2
    own = F.kl_div(pair_s, pair_t, reduction="none", log_target=True).sum(-1)
    others = F.kl_div(others_s, others_t, reduction="none", log_target=True).sum(-1)
    return scale * own, scale * others


def _decoupled(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of (class y, not y), and of the classes not y."""
    batch, classes = log_probs.shape
    own = log_probs.gather(1, labels[:, None])
    other = torch.ones_like(log_probs, dtype=torch.bool).scatter(
        1, labels[:, None], False
    )
    rest = log_probs[other].view(batch, classes - 1)
    total = rest.logsumexp(-1, keepdim=True)
    return torch.cat([own, total], 1), rest - total
