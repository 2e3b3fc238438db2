"""What methods that match inner features of teachers and student have in common.

Every such method is a loss between the features of the student and of one teacher. With
several teachers there is one loss per teacher, with its own adapters, and their mean by
the members' weights counts. Teachers run in every step: features are too large to be
cached.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Batch, Stage, StudentLearner, Task
from metaensemble.methods.distillation import LogitDistillation
from metaensemble.models.taps import (
    Tap,
    named,
    pair_stages,
    penultimate,
    stages,
    tapped,
)
from metaensemble.teachers import Ensemble, LiveTeacher, LiveTeachers


@dataclass(frozen=True)
class Features:
    """What one network says of a batch, inside and out."""

    maps: tuple[Tensor, ...]
    """Per stage (batch, channels, height, width); students' and teachers' of one place
    belong together, whatever their sizes."""
    vector: Tensor
    """(batch, channels): what the last linear layer reads."""
    logits: Tensor
    """(batch, classes)."""


@dataclass(frozen=True)
class Layout:
    """Where the features of a student and of one teacher are read."""

    student: tuple[Tap, ...]
    """Stages of the student."""
    teacher: tuple[Tap, ...]
    """Those of the teacher that belong to them."""
    student_vector: Tap
    """What the student's last linear layer reads."""
    teacher_vector: Tap
    """What the teacher's last linear layer reads."""
    labels: Tensor
    """Of all distillation images, (images,), by `Batch.indices`; -1 where unknown."""


class FeatureLoss(nn.Module, ABC):
    """The loss between a student's features and one teacher's, with its adapters."""

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the loss, a scalar; no gradient flows to the teacher."""


class FeatureMethod(LogitDistillation):
    """A method that adds a `FeatureLoss` to the terms on the logits.

    loss = label_weight CE + kd_weight T^2 KL + weight sum_i share_i loss_i

    The papers use labels and the features alone: ``--label-weight 1 --kd-weight 0``.
    """

    live: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Of the features' loss."""
    views: int = Field(default=0, ge=0)
    """Different augmented copies of each image; 0 augments anew in every epoch."""
    student_layers: tuple[str, ...] = ()
    """The student's layers to match, such as layer2 (the output of that module) or
    relu#3 (of its third call); default: the last value at each resolution."""
    teacher_layers: tuple[str, ...] = ()
    """Those of every teacher, as many and in the same order; default as for the
    student, paired by resolution."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss between the student and one teacher.

        Args:
            layout: where their features are read, with their shapes.
        """
        raise NotImplementedError

    def places(self, layout: Layout, default: int) -> tuple[int, ...]:
        """Return which pairs of layers to match: those named by the user, else one.

        Args:
            layout: of the pairs.
            default: position of the one; negative ones count from the last.
        """
        count = len(layout.student)
        if self.student_layers or self.teacher_layers:
            return tuple(range(count))
        return (default % count,)

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training, in which the teachers run along."""
        learner = FeatureLearner(self, student, teachers, task)
        yield Stage(self.name_, self, learner)


class FeatureLearner(StudentLearner):
    """Trains a student on its logits and its features."""

    def __init__(
        self,
        method: FeatureMethod,
        student: nn.Module,
        teachers: Ensemble,
        task: Task,
    ):
        super().__init__(student)
        self.method = method
        self.ensemble = teachers
        device = next(student.parameters()).device
        self.teachers = LiveTeachers(teachers, device)
        self.layouts = [
            layout_of(
                student,
                teacher,
                task,
                method.student_layers,
                method.teacher_layers,
            )
            for teacher in self.teachers
        ]
        losses = [method.loss(layout).to(device) for layout in self.layouts]
        self.losses = nn.ModuleList(losses)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms on the logits, and the features' loss."""
        taught = [
            teacher_features(teacher, layout, batch)
            for teacher, layout in zip(self.teachers, self.layouts, strict=True)
        ]
        learned, logits = self._student(batch)
        method = self.method
        with torch.no_grad():
            together = torch.stack([features.logits for features in taught])
            target = self.ensemble.log_probs(together, method.temperature)
        losses = method.logit_losses(logits, target, batch, self.student)
        terms = [
            share * loss(student, teacher, batch)
            for share, loss, student, teacher in zip(
                self.ensemble.shares, self.losses, learned, taught, strict=True
            )
        ]
        losses[method.name_] = method.weight * torch.stack(terms).sum()
        return losses

    def _student(self, batch: Batch) -> tuple[list[Features], Tensor]:
        """Return the student's features as each teacher's loss wants them."""
        wanted: dict[Tap, None] = {}
        for layout in self.layouts:
            wanted |= dict.fromkeys((*layout.student, layout.student_vector))
        taps = list(wanted)
        logits, maps = tapped(self.student, taps, batch.inputs)
        values = dict(zip(taps, maps, strict=True))
        return [
            Features(
                tuple(values[tap] for tap in layout.student),
                values[layout.student_vector].flatten(1),
                logits,
            )
            for layout in self.layouts
        ], logits


@torch.no_grad()
def teacher_features(teacher: LiveTeacher, layout: Layout, batch: Batch) -> Features:
    """Return what a teacher says of a batch."""
    assert batch.pixels is not None
    taps = (*layout.teacher, layout.teacher_vector)
    logits, maps = teacher(batch.pixels, taps)
    return Features(tuple(maps[:-1]), maps[-1].flatten(1), logits)


def layout_of(
    student: nn.Module,
    teacher: LiveTeacher,
    task: Task,
    student_layers: Sequence[str] = (),
    teacher_layers: Sequence[str] = (),
) -> Layout:
    """Return where the features of a student and of a teacher are to be read.

    Raises:
        InputError: a named layer does not exist, or they are not as many; or a network
            has no inner features, or does not end in a linear layer.
    """
    own, theirs = matched_taps(student, teacher, task, student_layers, teacher_layers)
    return Layout(
        own,
        theirs,
        penultimate(student, task.input_shape),
        teacher.penultimate,
        task.labels,
    )


def matched_taps(
    student: nn.Module,
    teacher: LiveTeacher,
    task: Task,
    student_layers: Sequence[str] = (),
    teacher_layers: Sequence[str] = (),
) -> tuple[tuple[Tap, ...], tuple[Tap, ...]]:
    """Return which maps of a student and of a teacher belong together, in order.

    Raises:
        InputError: a named layer does not exist, or they are not as many; or a network
            has no inner features.
    """
    input_shape, shape = task.input_shape, teacher.member.info.input_shape
    own = named(student, input_shape, student_layers, "the student's")
    theirs = named(teacher.network, shape, teacher_layers, f"{teacher.member.path}'s")
    if own and theirs and len(own) != len(theirs):
        raise InputError(
            "--student-layers and --teacher-layers must be as many, but are "
            f"{len(own)} and {len(theirs)}; name them in pairs"
        )
    if not (own and theirs):
        own = own or stages(student, input_shape)
        theirs = theirs or teacher.stages
        pairs = pair_stages(own, theirs)
        own = tuple(own[i] for i, _ in pairs)
        theirs = tuple(theirs[j] for _, j in pairs)
    return own, theirs


def to_one_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps, the larger averaged over windows to the smaller's size."""
    height = min(first.shape[2], second.shape[2])
    width = min(first.shape[3], second.shape[3])
    return pooled(first, height, width), pooled(second, height, width)


def pooled(value: Tensor, height: int, width: int) -> Tensor:
    """Return a map averaged over windows to a size; itself if it has that size."""
    if value.shape[2:] == (height, width):
        return value
    return F.adaptive_avg_pool2d(value, (height, width))
