"""Online ensemble: students of falling width, taught by their own mean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Batch, Stage, Task
from metaensemble.methods.distillation import tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.methods.narrowing import falling
from metaensemble.methods.online import (
    Grown,
    OnlineLearner,
    OnlineMethod,
    detached,
    other_networks,
)
from metaensemble.models.stem import once, share, stem
from metaensemble.models.taps import Tap, stages, tapped
from metaensemble.teachers import Ensemble
from metaensemble.teachers.ensemble import ensemble_log_probs


class StudentEnsemble(OnlineMethod):
    """Walawalkar et al. 2020: a network and narrower ones, trained as one ensemble.

    loss = l1 sum_j CE(labels, j)
           + l2 sum_{j > 0} sum_l MSE(map l of student 0, adapter_jl(map l of j))
           + l3 sum_j T^2 KL(mean of all logits at T || j at T)

    Student j has max(1, floor(c (M - j) / M)) of the c channels of every layer that can
    be narrowed; student 0 is the network as it is. Its maps, and the mean, are held
    fixed as targets. All students share the stem (first layer and its norm). Adapters
    are 1x1 convolutions.

    Differences from the paper's code: adapters are there from the first step and learn
    at the same rate as all else; students are evaluated in eval mode; channels that
    cannot leave alone stay. Those are what shortcuts without weights join: a ResNet's
    first stage to its stem, and with ``shortcut=A`` all stages, so that only the inner
    layers of blocks are narrowed.
    """

    summary: ClassVar[str] = "students of falling width, taught by their own mean"
    paper: ClassVar[str] = "Walawalkar, Shen, Savvides 2020 (arXiv 2011.07449)"
    needs: ClassVar[tuple[str, ...]] = ("labels (training)",)
    cost: ClassVar[str] = "one training of M networks of falling width side by side"

    name: Literal["student_ensemble"] = "student_ensemble"
    """The method's name."""
    students: int = Field(default=5, ge=2)
    """M: how many networks; the last has 1/M of the channels."""
    ship: int = Field(default=0, ge=0)
    """Which of them, from 0, the largest, is the run's student. All are written: the
    report has their sizes and accuracies, to choose from."""
    temperature: float = Field(default=3.0, gt=0)
    """T: both sides of the divergence are softened by it; it is scaled by T^2."""
    label_weight: float = Field(default=0.4, ge=0)
    """l1: weight of the labels' cross-entropy."""
    feature_weight: float = Field(default=0.2, ge=0)
    """l2: weight of the maps' squared error."""
    kd_weight: float = Field(default=0.4, ge=0)
    """l3: weight of the divergence from the mean."""
    shared: Literal["stem", "none"] = "stem"
    """What the students have in common. With none, the stem is narrowed, too, and with
    it what hangs on it, such as a ResNet's first stage."""

    @model_validator(mode="after")
    def _ships_one(self) -> "StudentEnsemble":
        if self.ship >= self.students:
            raise InputError(
                f"--ship must be one of the students 0 to {self.students - 1}, but is "
                f"{self.ship}; lower it or raise --students"
            )
        return self

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training.

        Raises:
            InputError: the network cannot be narrowed so many times.
        """
        del teachers
        common = stem(student, task.input_shape) if self.shared == "stem" else ()
        found = falling(
            student, task.architecture, task.input_shape, self.students, common
        )
        texts = found.architectures
        others = [other_networks(student, task, 1, text)[0] for text in texts[1:]]
        notes = [f"all students share {', '.join(common)}"] if common else []
        if found.whole:
            notes.append(
                "as wide in all students, for they belong to the stem or cannot be "
                f"narrowed alone: {', '.join(found.whole)}"
            )
        if found.clamped:
            notes.append(
                "one channel in the narrowest student, where there would be less: "
                f"{', '.join(found.clamped)}"
            )
        learner = StudentsLearner(self, [student, *others], texts, task, common)
        yield Stage(
            self.name_, self, learner, architecture=texts[self.ship], notes=tuple(notes)
        )


@dataclass(frozen=True)
class Parts:
    """What the students say of a batch."""

    logits: Float[Tensor, "networks batch classes"]
    maps: Sequence[Sequence[Tensor]]
    """Per student and stage, as wide as student 0's: (batch, channels, height, width).
    """


class Adapters(nn.Module):
    """1x1 convolutions from one student's maps to as many channels as another's.

    Args:
        own: the one's stages.
        wanted: the other's.
    """

    def __init__(self, own: Sequence[Tap], wanted: Sequence[Tap]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(tap.channels, to.channels, 1)
            for tap, to in zip(own, wanted, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps (batch, channels, height, width), one per stage."""
        return [adapt(value) for adapt, value in zip(self.stages, maps, strict=True)]


class StudentsLearner(OnlineLearner):
    """Trains students of falling width, and their adapters, together.

    Args:
        config: temperature, weights, which student is shipped.
        students: the widest first.
        architectures: theirs.
        task: tells the input.
        common: layers that they share.
    """

    def __init__(
        self,
        config: StudentEnsemble,
        students: Sequence[nn.Module],
        architectures: Sequence[str],
        task: Task,
        common: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.architectures = tuple(architectures)
        share(students, common)
        self.students = nn.ModuleList(students)
        self.common = tuple(common)
        self.taps = [stages(student, task.input_shape) for student in students]
        device = next(students[0].parameters()).device
        self.adapters = nn.ModuleList(
            Adapters(taps, self.taps[0]).to(device) for taps in self.taps[1:]
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of labels, maps and mean."""
        parts, config = self.parts(batch.inputs), self.config
        labels = [label_loss(logits, batch.labels) for logits in parts.logits]
        divergence = mean_loss(parts.logits, config.temperature)
        return {
            "label": config.label_weight * torch.stack(labels).sum(),
            "features": config.feature_weight * feature_loss(parts.maps),
            "distillation": config.kd_weight * divergence,
        }

    def parts(self, inputs: Float[Tensor, "batch channels height width"]) -> Parts:
        """Return all students' logits, and their maps as their adapters give them."""
        logits: list[Tensor] = []
        maps: list[Sequence[Tensor]] = []
        with once([self.students[0].get_submodule(name) for name in self.common]):
            for student, taps in zip(self.students, self.taps, strict=True):
                said, seen = tapped(student, taps, inputs)
                logits.append(said)
                maps.append(seen)
        pairs = zip(self.adapters, maps[1:], strict=True)
        adapted = [adapters(seen) for adapters, seen in pairs]
        return Parts(torch.stack(logits), [maps[0], *adapted])

    def networks(self) -> list[Grown]:
        """Return the students, the one to ship first."""
        ship = self.config.ship
        order = [ship, *(j for j in range(len(self.students)) if j != ship)]
        return [
            Grown(f"student-{j}", detached(self.students[j]), self.architectures[j])
            for j in order
        ]

    def export(self) -> nn.Module:
        """Return the student to ship."""
        return detached(self.students[self.config.ship])

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the students' logits."""
        return torch.stack([student(inputs) for student in self.students])


def feature_loss(maps: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
    """Return the sum over stages and students of the mean squared error to the first.

    Args:
        maps: per student and stage, alike in shape; the first one's get no gradient.
    """
    terms = [
        F.mse_loss(value, wanted.detach())
        for student in maps[1:]
        for value, wanted in zip(student, maps[0], strict=True)
    ]
    return torch.stack([maps[0][0].new_zeros(()), *terms]).sum()


def mean_loss(
    logits: Float[Tensor, "networks batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """Return the sum over networks of the divergence from their mean.

    Args:
        logits: their mean is the target, and gets no gradient.
        temperature: T.
    """
    target = ensemble_log_probs(logits.detach(), "logits", temperature)
    terms = [tempered_kl(target, each, temperature) for each in logits]
    return torch.stack(terms).sum()
