"""MEAL-V2: the mean of the teachers' probabilities and a discriminator, no labels.

Written from its description; the published program has no licence.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, StudentLearner
from metaensemble.methods.discriminator import Adversary, Discriminator
from metaensemble.methods.distillation import Distillation
from metaensemble.methods.divergence import kl_divergence
from metaensemble.teachers import Ensemble


class MealV2(Distillation):
    """Shen & Savvides 2020 (arXiv 2009.08453).

    loss = KL(ensemble || student) + eta BCE(discriminator)

    at temperature 1; the gradient of the first term is that of the cross-entropy with
    the ensemble's probabilities as soft labels. One discriminator tells the student's
    logits from the mean of the teachers' logits. Hard labels play no part.
    """

    summary: ClassVar[str] = "distil the mean of the teachers, with a discriminator"
    paper: ClassVar[str] = "Shen, Savvides 2020, MEAL V2 (arXiv 2009.08453)"
    needs: ClassVar[tuple[str, ...]] = ("images",)
    cost: ClassVar[str] = "one training; teachers see each image `views` times"

    name: Literal["meal_v2"] = "meal_v2"
    """The method's name."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On tensors of two or more dimensions; the paper has none."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    eta: float = Field(default=0.1, ge=0)
    """Weight of the discriminator's loss; the published program's is 1."""
    adversary: Adversary = "reversal"
    """reversal: the student plays against the discriminator; cooperative: it helps it
    (what the published program does); none."""
    discriminator_rate: float = Field(default=1.0, gt=0)
    """Factor on the gradients of the discriminator. With sgd, eta times it is its
    learning rate relative to the student's."""

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> StudentLearner:
        """Return the learner of `student`."""
        assert teachers is not None
        return MealV2Learner(self, student, teachers)


class MealV2Learner(StudentLearner):
    """Trains the student and, unless there is none, the discriminator."""

    def __init__(self, method: MealV2, student: nn.Module, teachers: Ensemble):
        super().__init__(student)
        self.method = method
        self.teachers = teachers
        self.discriminator: Discriminator | None = None
        if method.adversary != "none" and method.eta > 0:
            device = next(student.parameters()).device
            classes = len(teachers.info.classes)
            judge = Discriminator(classes, 8, method.discriminator_rate)
            self.discriminator = judge.to(device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distillation term and the game's loss."""
        assert batch.teacher_logits is not None
        method, teachers = self.method, self.teachers
        logits = self.student(batch.inputs)
        target = teachers.log_probs(batch.teacher_logits)
        losses = {"distillation": kl_divergence(target, logits.log_softmax(-1))}
        if self.discriminator is not None:
            shares = torch.tensor(teachers.shares, device=logits.device)
            mean = torch.einsum("m,mbc->bc", shares, batch.teacher_logits)
            game = self.discriminator.loss(logits, mean, method.adversary)
            losses["discriminator"] = method.eta * game
        return losses
