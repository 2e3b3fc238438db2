"""Distillation into latent members of one network, one per teacher, then their mean."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.batch_ensemble import BatchEnsemble
from metaensemble.methods.contract import Batch, Learner, Stage, Task
from metaensemble.methods.distillation import Distillation, tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.models import InputShape
from metaensemble.teachers import Ensemble


class LatentEnsemble(Distillation):
    """Nam et al. 2022: a student that is a BatchEnsemble while it is trained.

    loss = (1 - w) T^2 sum_i share_i KL(teacher i at T, member i at T)
           + w sum_i share_i CE(labels, member i)

    The divergence is the paper's cross-entropy less the teachers' entropy: the same
    gradients, and 0 where each member says what its teacher says. Shares are the
    teachers' weights, 1/M without. The student is the network with the members' mean
    factors; its batch-norm statistics are estimated anew, which the paper does not do.
    The whole method of the paper has --perturbation tdiv_sdiv.
    """

    summary: ClassVar[str] = "a member per teacher inside one network, then their mean"
    paper: ClassVar[str] = "Nam, Lee, Heo, Lee 2022 (arXiv 2206.15047)"
    needs: ClassVar[tuple[str, ...]] = ("images",)
    cost: ClassVar[str] = "one training on batches that are N times as large"

    name: Literal["latent_ensemble"] = "latent_ensemble"
    """The method's name."""
    temperature: float = Field(default=4.0, gt=0)
    """T: both distributions are softened by it; the loss is scaled by T^2."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """w: weight of the labels' cross-entropy, on images that are not perturbed."""
    init_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the factors' start around 1. With 0, as in the paper, the
    members start equal and differ by what their teachers say alone."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training."""
        learner = LatentLearner(self, student, teachers, task.input_shape)
        yield Stage(self.name_, self, learner)


class LatentLearner(Learner):
    """Trains a network and the factors of its members."""

    stale_statistics: ClassVar[bool] = True

    def __init__(
        self,
        config: LatentEnsemble,
        student: nn.Module,
        teachers: Ensemble,
        input_shape: InputShape,
    ) -> None:
        super().__init__()
        self.config = config
        self.shares = teachers.shares
        self.student = BatchEnsemble(
            student, len(teachers), input_shape, config.init_std
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the members' distillation term and, if it has weight, the labels'."""
        assert batch.teacher_logits is not None
        temperature, weight = self.config.temperature, self.config.label_weight
        logits = self.student(batch.inputs)
        targets = (batch.teacher_logits / temperature).log_softmax(-1)
        terms = [
            share * tempered_kl(target, member, temperature)
            for share, target, member in zip(self.shares, targets, logits, strict=True)
        ]
        losses = {"distillation": (1 - weight) * torch.stack(terms).sum()}
        if weight:
            known = logits if batch.clean is None else self.student(batch.clean)
            labels = [
                share * label_loss(member, batch.labels)
                for share, member in zip(self.shares, known, strict=True)
            ]
            losses["label"] = weight * torch.stack(labels).sum()
        return losses

    def export(self) -> nn.Module:
        """Return the plain network that has the members' mean factors."""
        return self.student.merged(self.shares).eval()

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the members' logits."""
        return self.student(inputs)
