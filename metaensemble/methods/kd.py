"""Knowledge distillation from the mean of the teachers."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, StudentLearner, TrainedMethod
from metaensemble.methods.divergence import Direction, kl_divergence, label_loss
from metaensemble.teachers import Average, Ensemble, ensemble_log_probs

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


class KD(TrainedMethod):
    """Hinton et al. 2015 with the ensemble as the teacher.

    loss = (1 - w) T^2 KL(mean teacher at T, student at T) + w CE(labels, student)
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

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> StudentLearner:
        """Return the learner of `student`."""
        average = teachers.average if teachers else "probabilities"
        return _KDLearner(self, student, average)


class _KDLearner(StudentLearner):
    def __init__(self, config: KD, student: nn.Module, average: Average):
        super().__init__(student)
        self.average: Average = average
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distillation term and, if it has weight, the label term."""
        assert batch.teacher_logits is not None
        config = self.config
        temperature, weight = config.temperature, config.label_weight
        logits = self.student(batch.inputs)
        target = ensemble_log_probs(batch.teacher_logits, self.average, temperature)
        student = (logits / temperature).log_softmax(-1)
        divergence = kl_divergence(target, student, config.direction)
        losses = {"distillation": (1 - weight) * temperature**2 * divergence}
        if weight:
            losses["label"] = weight * label_loss(logits, batch.labels)
        return losses
