"""Ensemble distribution distillation: the student learns how members differ, too."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, Stage, StudentLearner, Task
from metaensemble.methods.distillation import Distillation
from metaensemble.teachers import Ensemble

LARGEST = 20.0
"""Log of the concentration above which it grows linearly instead of exponentially."""


class EnsembleDistribution(Distillation):
    """Malinin, Mlodozeniec, Gales 2020: a Dirichlet fitted to the members' predictions.

    loss = - sum_m share_m log Dir(pi_m | alpha), alpha = exp(z / T), pi_m at T

    The student is a plain network with logits z: its mean prediction alpha / sum alpha
    is softmax(z), and the sum of exp(z) says how much the members agree.
    `metaensemble.metrics.dirichlet_uncertainty(network(images))` splits its uncertainty
    into that of the data and that of knowledge. A fold of a temperature (--calibrate)
    changes the Dirichlet, and so that split.

    The loss is not multiplied by T^2, and members weigh as --teacher-weights say. The
    paper has no bound on alpha; here it grows linearly beyond exp(20), so that a
    student that starts from a classifier's large logits has finite gradients.
    """

    summary: ClassVar[str] = "distil the members' distribution, uncertainty included"
    paper: ClassVar[str] = "Malinin, Mlodozeniec, Gales 2020 (arXiv 1905.00076)"
    needs: ClassVar[tuple[str, ...]] = ("images",)
    cost: ClassVar[str] = "one training; teachers see each image `views` times"

    name: Literal["ensemble_distribution"] = "ensemble_distribution"
    """The method's name."""
    temperature: float = Field(default=10.0, ge=1)
    """T at the start, for student and members; falls to 1."""
    anneal: float = Field(default=0.5, ge=0, le=1)
    """Part of the training in which T falls, linearly; then it is 1."""
    smoothing: float = Field(default=1e-4, gt=0, lt=1)
    """g: members say (1 - g) pi + g / classes, so that none says 0."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training, whose length sets the temperature."""
        learner = _DirichletLearner(self, student, teachers, task.steps(self))
        yield Stage(self.name_, self, learner)

    def temperature_at(self, step: int, steps: int) -> float:
        """Return T of a step: linear from `temperature` to 1 in `anneal` of the steps.

        Args:
            step: from 0.
            steps: of the training.
        """
        falling = self.anneal * steps
        rest = max(0.0, 1 - step / falling) if falling else 0.0
        return 1 + (self.temperature - 1) * rest


class _DirichletLearner(StudentLearner):
    def __init__(
        self,
        method: EnsembleDistribution,
        student: nn.Module,
        teachers: Ensemble,
        steps: int,
    ):
        super().__init__(student)
        self.method = method
        self.shares = teachers.shares
        self.steps = steps

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative log-likelihood of the members' predictions."""
        assert batch.teacher_logits is not None
        temperature = self.method.temperature_at(batch.step, self.steps)
        logits = self.student(batch.inputs)
        members = (batch.teacher_logits / temperature).softmax(-1)
        smooth = smoothed(members, self.method.smoothing)
        shares = smooth.new_tensor(self.shares)
        log_members = torch.einsum("m,mbc->bc", shares, smooth.log())
        loss = dirichlet_nll(logits / temperature, log_members)
        return {"distribution": loss}


def smoothed(probabilities: Tensor, share: float) -> Tensor:
    """Return (1 - share) times the probabilities, plus share times the uniform ones."""
    return (1 - share) * probabilities + share / probabilities.shape[-1]


def dirichlet_nll(log_alpha: Tensor, mean_log_probs: Tensor) -> Tensor:
    """Return the mean over members and batch of -log Dir(pi | alpha), in nats.

    -log Dir = sum_c ln G(alpha_c) - ln G(alpha_0) - sum_c (alpha_c - 1) ln pi_c, which
    is linear in ln pi: the members' mean is enough. In float64, since the terms are
    large and cancel; ln G(a) = ln G(a + 1) - ln a keeps small concentrations finite.

    Args:
        log_alpha: (batch, classes), log of the concentrations: the student's logits.
        mean_log_probs: (batch, classes), the mean over members of ln pi.

    Returns:
        A scalar of the type of `log_alpha`.
    """
    scores = log_alpha.double()
    beyond = (scores - LARGEST).clamp_min(0)
    bounded = scores.clamp_max(LARGEST) + beyond.log1p()
    alpha = bounded.exp()
    partition = ((alpha + 1).lgamma() - bounded).sum(-1) - alpha.sum(-1).lgamma()
    fit = ((alpha - 1) * mean_log_probs.double()).sum(-1)
    return (partition - fit).mean().to(log_alpha.dtype)
