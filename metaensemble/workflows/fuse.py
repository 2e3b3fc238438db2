"""N trained models in, one student out, by any method."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.markup import escape

from metaensemble.core.errors import InputError
from metaensemble.engine import evaluate
from metaensemble.merging import BestMember, Merger
from metaensemble.methods import WeightFormerMethod
from metaensemble.models import Architecture, build
from metaensemble.report import AgainstBest, Diagnosis, Findings, Report
from metaensemble.teachers import Ensemble
from metaensemble.workflows.barrier import barrier_after
from metaensemble.workflows.diagnosis import against_best, diagnose, misfit
from metaensemble.workflows.options import (
    DataOptions,
    MemberOptions,
    RunOptions,
    Session,
)
from metaensemble.workflows.predicting import weightformer_student
from metaensemble.workflows.registry import AnyMethod, MethodUnion
from metaensemble.workflows.reporting import write_run
from metaensemble.workflows.students import Student, distil_student, merge_student

Fallback = Literal["none", "best-member"]
"""What is shipped where the student is below the best member on validation."""


class FuseOptions(RunOptions, MemberOptions, DataOptions):
    """Make one model of N trained ones."""

    members: tuple[Path, ...]
    """Member files, or folders of them."""
    out: Path
    """The run: a folder that appears whole or not at all."""
    student: str | None = None
    """Architecture of the student, for methods that allow another; default: that of
    the first member."""
    unlabelled: bool = False
    """Distil also on the training images that --limit-train leaves out, unlabelled."""
    fallback: Fallback = "none"
    """best-member: where the student is below the best member on validation, the run
    holds that member instead, and says so."""
    overwrite: bool = False
    """Replace the run if it exists."""


class FuseConfig(FuseOptions):
    """`FuseOptions` with the method: what config.yaml holds."""

    method: AnyMethod = Field(discriminator="name")
    """How."""


def fuse_students(
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    student: str | None = None,
) -> list[Student]:
    """Return the student that a method makes, the last being the one to ship.

    WeightFormer gives two: as predicted, and tuned.

    Raises:
        InputError: the method cannot work with these members or this student.
    """
    refuse_unsuited(ensemble, method, student)
    if isinstance(method, WeightFormerMethod):
        predicted, tuned = weightformer_student(session, ensemble, method)
        return [predicted] if tuned is None else [predicted, tuned]
    if isinstance(method, Merger):
        return [merge_student(session, ensemble, method)]
    return [distil_student(session, ensemble, method, _canonical(student))]


def fuse_and_find(
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    student: str | None = None,
    fallback: Fallback = "none",
) -> tuple[Student, Findings]:
    """Diagnose the members, fuse them, compare with the best one on validation.

    Returns:
        The student to ship, which with a fallback may be the best member, and what was
        found out beside it.

    Raises:
        InputError: the method cannot work with these members or this student.
    """
    refuse_unsuited(ensemble, method, student)
    diagnosis = diagnose(session, ensemble) if len(ensemble) > 1 else None
    if diagnosis is not None:
        tell(session, diagnosis, misfit(diagnosis, method))
    made = fuse_students(session, ensemble, method, student)[-1]
    against = None
    if not isinstance(method, BestMember):
        made, against = _compared(session, ensemble, made, fallback)
    barrier, notes = barrier_after(session, ensemble, method)
    found = Findings(diagnosis, barrier, against, notes)
    return made, found


def tell(session: Session, diagnosis: Diagnosis, warning: str | None = None) -> None:
    """Show a diagnosis and log it."""
    session.log.event("diagnosis", **diagnosis.model_dump(mode="json"), warning=warning)
    for line in [*diagnosis.lines, *([warning] if warning else [])]:
        session.log.say(escape(line))


def fuse_into(
    folder: Path,
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    *,
    command: str,
    student: str | None = None,
    fallback: Fallback = "none",
    final: Path,
) -> Report:
    """Fuse, and write the run's files into `folder`; return the student's report."""
    made, found = fuse_and_find(session, ensemble, method, student, fallback)
    report = write_run(
        folder,
        session,
        ensemble,
        made,
        command=command,
        method=method,
        final=final,
        found=found,
    )
    session.clear_checkpoints()
    return report


def refuse_unsuited(
    ensemble: Ensemble, method: MethodUnion, student: str | None = None
) -> None:
    """Refuse, before any work, members or a student that a method cannot work with.

    Raises:
        InputError: the student's architecture is none, or not the members' where the
            method needs that; or the members' architectures differ.
    """
    student = _canonical(student)
    if student not in (None, ensemble.info.architecture) and isinstance(
        method, Merger | WeightFormerMethod
    ):
        raise InputError(
            f"--student must be the members' architecture for {method.name}, but is "
            f"{student}; leave it out or choose --method kd"
        )
    if student is not None:
        build(student, len(ensemble.info.classes), ensemble.info.input_shape)
    if "one architecture" in method.needs:
        ensemble.one_architecture(
            f"the members of {method.name} must share one architecture"
        )


def _canonical(student: str | None) -> str | None:
    return None if student is None else str(Architecture.parse(student))


def _compared(
    session: Session, ensemble: Ensemble, made: Student, fallback: Fallback
) -> tuple[Student, AgainstBest]:
    """Return what to ship, and the student made beside the best member."""
    split, device = session.data.validation, session.device
    on_validation = evaluate(made.network, made.info.normalization, split, device)
    against, best = against_best(session, ensemble, on_validation.log_probs)
    if not against.worse or fallback == "none":
        return made, against
    member = ensemble.members[best]
    network = member.network().to(device)
    shipped = replace(made, network=network, info=member.info, stage=None)
    return shipped, against.model_copy(update={"fallback": True})
