"""An ensemble and its student in one training, without members to begin with."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.engine import TrainingBatches, evaluate, fit
from metaensemble.methods import (
    Grown,
    Learner,
    OnlineLearner,
    OnlineMethod,
    Stage,
    Task,
)
from metaensemble.metrics import macs, parameters
from metaensemble.models import Architecture, init_model
from metaensemble.report import Findings, Report
from metaensemble.teachers import Average, Ensemble, Member, MemberInfo, save_member
from metaensemble.workflows.fuse import NO_CHOICES, Choices
from metaensemble.workflows.options import Session
from metaensemble.workflows.reporting import write_run
from metaensemble.workflows.students import (
    Student,
    distillation_images,
    exported,
    state_of,
)
from metaensemble.workflows.temperature import calibrated, refuse_without_head

NETWORKS = "networks"
"""Folder within a run that holds what was trained beside the student."""


@dataclass(frozen=True)
class Growth:
    """What an online method has made."""

    student: Student
    """The one to ship."""
    ensemble: Ensemble
    """All networks, the student among them, as members on disk."""
    others: tuple[Member, ...]
    """Combinations of them, on disk."""

    @property
    def found(self) -> Findings:
        """Return what stands in a report beside student and members."""
        return Findings(others=self.others, trained_together=True)


def grow(
    session: Session,
    method: OnlineMethod,
    choices: Choices,
    folder: Path,
    average: Average = "probabilities",
) -> Growth:
    """Train an online method's networks and write them under `folder`.

    Args:
        session: data, log, seed, device.
        method: how.
        choices: name the student's architecture.
        folder: gets one member file per network.
        average: what the ensemble of the networks averages.

    Raises:
        InputError: there is no architecture, the method cannot work with it, or a
            choice is one among members.
    """
    _refuse_choices(method, choices)
    architecture = choices.student
    if architecture is None:
        raise InputError(
            f"{method.name_} trains its networks itself, so it must be told which, but "
            "neither members nor --student are given; add --student ARCHITECTURE"
        )
    data = session.data
    info = MemberInfo(
        architecture=str(Architecture.parse(architecture)),
        classes=data.classes,
        input_shape=data.input_shape,
        normalization=data.normalization,
    )
    if choices.calibrate:
        refuse_without_head(info)
    network = init_model(
        info.architecture, data.num_classes, info.input_shape, session.seed
    )
    labels = distillation_images(session).labels
    task = Task(info.input_shape, labels, info.architecture, data.num_classes)
    stages = method.stages(network.to(session.device), Ensemble(()), task)
    student, learner = Student(network, info), None
    for count in itertools.count():
        with seeded(session.seed, "learner", count):
            stage = next(stages, None)
        if stage is None:
            break
        student, learner = _trained(session, stage, info).after(student), stage.learner
    assert isinstance(learner, OnlineLearner)
    if choices.calibrate:
        student = calibrated(session, student)
    members: list[Member] = []
    others: list[Member] = []
    sizes: list[str] = []
    for grown in learner.networks():
        own = info.model_copy(
            update={
                "architecture": grown.architecture or info.architecture,
                "training": {"method": method.model_dump(mode="json")},
            }
        )
        path = folder / f"{grown.name}.safetensors"
        saved = save_member(path, state_of(grown.network), own)
        (members if grown.member else others).append(saved)
        sizes.append(_described(session, grown, info))
    student = replace(student, notes=(*student.notes, *sizes))
    return Growth(student, Ensemble(tuple(members), average), tuple(others))


def grow_into(
    folder: Path,
    session: Session,
    method: OnlineMethod,
    choices: Choices = NO_CHOICES,
    average: Average = "probabilities",
    *,
    command: str,
    final: Path,
) -> Report:
    """Grow networks, and write the run's files into `folder`; return the report."""
    grown = grow(session, method, choices, folder / NETWORKS, average)
    report = write_run(
        folder,
        session,
        grown.ensemble,
        grown.student,
        command=command,
        method=method,
        final=final,
        found=grown.found,
        license=choices.license,
    )
    session.clear_checkpoints()
    return report


def _refuse_choices(method: OnlineMethod, choices: Choices) -> None:
    for option in ("select", "teacher_weights", "fallback"):
        if getattr(choices, option) != getattr(NO_CHOICES, option):
            raise InputError(
                f"--{option.replace('_', '-')} chooses among members that are given, "
                f"but {method.name_} trains its networks itself; leave it out"
            )


def _trained(session: Session, stage: Stage, info: MemberInfo) -> Student:
    method, learner = stage.settings, stage.learner
    images, normalization = distillation_images(session), info.normalization
    batches = TrainingBatches(
        images,
        session.data.augmentation,
        normalization,
        method.batch_size,
        session.seed,
        views=method.views,
        device=session.device,
    )

    def validate(learner: Learner) -> dict[str, float]:
        network: nn.Module = exported(session, learner, normalization)
        split = session.data.validation
        result = evaluate(network, normalization, split, session.device)
        figures = {"accuracy": result.measured.accuracy, "nll": result.measured.nll}
        return {**figures, "objective": result.objective(None)}

    fitted = fit(
        learner,
        method,
        batches,
        batches.steps_per_epoch,
        seed=session.seed,
        log=session.log,
        what=stage.name,
        validate=None if learner.preparation else validate,
        checkpoints=session.checkpoints(stage.name),
        world=session.world,
    )
    batch = min(method.batch_size, len(images))
    if stage.architecture is not None:
        info = info.model_copy(update={"architecture": stage.architecture})
    return Student(
        exported(session, learner, normalization),
        info,
        train_seconds=fitted.seconds,
        train_images=fitted.steps * batch,
        history=[{**row, "images": row["step"] * batch} for row in fitted.history],
        notes=stage.notes,
    )


def _described(session: Session, grown: Grown, info: MemberInfo) -> str:
    """Return what a network costs and what it is worth on validation."""
    split = session.data.validation
    result = evaluate(grown.network, info.normalization, split, session.device)
    return (
        f"{grown.name}: {parameters(grown.network):,} parameters, "
        f"{macs(grown.network, info.input_shape):,} multiply-accumulates, "
        f"{100 * result.measured.accuracy:.1f}% on validation"
    )
