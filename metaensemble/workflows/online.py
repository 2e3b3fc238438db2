"""An ensemble and its student in one training, without members to begin with."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.engine import TrainingBatches, evaluate, fit
from metaensemble.methods import Learner, OnlineLearner, OnlineMethod, Stage, Task
from metaensemble.models import Architecture, init_model
from metaensemble.report import Findings, Report
from metaensemble.teachers import Ensemble, Member, MemberInfo, save_member
from metaensemble.workflows.options import Session
from metaensemble.workflows.reporting import write_run
from metaensemble.workflows.students import (
    Student,
    distillation_images,
    exported,
    state_of,
)

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


def grow(
    session: Session, method: OnlineMethod, architecture: str | None, folder: Path
) -> Growth:
    """Train an online method's networks and write them under `folder`.

    Args:
        session: data, log, seed, device.
        method: how.
        architecture: of the student.
        folder: gets one member file per network.

    Raises:
        InputError: there is no architecture, or the method cannot work with it.
    """
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
    network = init_model(
        info.architecture, data.num_classes, info.input_shape, session.seed
    )
    task = Task(
        info.input_shape, distillation_images(session).labels, info.architecture
    )
    stages = method.stages(network.to(session.device), Ensemble(()), task)
    student, learner = Student(network, info), None
    for count in itertools.count():
        with seeded(session.seed, "learner", count):
            stage = next(stages, None)
        if stage is None:
            break
        student, learner = _trained(session, stage, info).after(student), stage.learner
    assert isinstance(learner, OnlineLearner)
    members: list[Member] = []
    others: list[Member] = []
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
    return Growth(student, Ensemble(tuple(members)), tuple(others))


def grow_into(
    folder: Path,
    session: Session,
    method: OnlineMethod,
    architecture: str | None,
    *,
    command: str,
    final: Path,
) -> Report:
    """Grow networks, and write the run's files into `folder`; return the report."""
    grown = grow(session, method, architecture, folder / NETWORKS)
    report = write_run(
        folder,
        session,
        grown.ensemble,
        grown.student,
        command=command,
        method=method,
        final=final,
        found=Findings(others=grown.others),
    )
    session.clear_checkpoints()
    return report


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
        checkpoint=session.checkpoint(stage.name),
    )
    batch = min(method.batch_size, len(images))
    return Student(
        exported(session, learner, normalization),
        info,
        train_seconds=fitted.seconds,
        train_images=fitted.steps * batch,
        history=[{**row, "images": row["step"] * batch} for row in fitted.history],
        notes=stage.notes,
    )
