"""What all methods that distil into a given student have in common."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from metaensemble.methods.contract import Batch, TrainedMethod
from metaensemble.methods.divergence import Direction, kl_divergence, label_loss

Start = Literal[
    "best_member",
    "scratch",
    "soup",
    "greedy_soup",
    "learned_soup",
    "aligned_soup",
    "repair",
    "regression_merge",
    "ot_fusion",
]
"""What a student may start from; the mergers are those of the registry."""


class Distillation(TrainedMethod):
    """A method that trains a student of any architecture; the fields they share."""

    start: Start = "best_member"
    """Where the student starts: the member that is best on validation (where it has
    the student's architecture), fresh weights, or what a merger with its defaults makes
    of the members."""
    plain: Literal["auto", "always", "never"] = "auto"
    """Whether to distil on the images as they are instead of augmented ones; auto:
    where each is seen once at most. A merged start was fitted to plain images."""

    @property
    def augments(self) -> bool:
        """Return whether images are augmented."""
        return self.plain == "never" or (self.plain == "auto" and self.epochs > 1)


class LogitDistillation(Distillation):
    """Distillation whose loss has Hinton's two terms, beside what else it has."""

    temperature: float = Field(default=2.0, gt=0)
    """T: both distributions are softened by it; the loss is scaled by T^2."""
    label_weight: float = Field(default=0.0, ge=0)
    """Weight of the labels' cross-entropy."""
    kd_weight: float = Field(default=1.0, ge=0)
    """Weight of T^2 KL(ensemble || student)."""

    def logit_losses(
        self,
        logits: Tensor,
        target: Tensor,
        batch: Batch,
        clean: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Return the weighted terms on the student's logits, without those of weight 0.

        Args:
            logits: (batch, classes), of the student.
            target: (batch, classes), the ensemble's log-probabilities at T.
            batch: brings the labels.
            clean: the student, for the labels' term on images that were perturbed.
        """
        losses: dict[str, Tensor] = {}
        if self.kd_weight:
            losses["distillation"] = self.kd_weight * tempered_kl(
                target, logits, self.temperature
            )
        if self.label_weight:
            known = logits if batch.clean is None else clean(batch.clean)
            losses["label"] = self.label_weight * label_loss(known, batch.labels)
        return losses


def tempered_kl(
    target: Tensor, logits: Tensor, temperature: float, direction: Direction = "forward"
) -> Tensor:
    """Return T^2 times the KL divergence between softened predictions, in nats.

    Args:
        target: (batch, classes), log-probabilities of the ensemble at T.
        logits: (batch, classes), of the student.
        temperature: T.
        direction: which one is the reference.
    """
    student = (logits / temperature).log_softmax(-1)
    return temperature**2 * kl_divergence(target, student, direction)
