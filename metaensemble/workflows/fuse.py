"""N trained models in, one student out, by any method."""

from pathlib import Path

from pydantic import Field

from metaensemble.core.errors import InputError
from metaensemble.merging import Merger
from metaensemble.methods import WeightFormerMethod
from metaensemble.models import Architecture
from metaensemble.report import Report
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import (
    DataOptions,
    MemberOptions,
    RunOptions,
    Session,
)
from metaensemble.workflows.registry import AnyMethod, MethodUnion
from metaensemble.workflows.reporting import write_run
from metaensemble.workflows.students import (
    Student,
    distil_student,
    merge_student,
    weightformer_student,
)


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
    if student is not None:
        student = str(Architecture.parse(student))
    if student not in (None, ensemble.info.architecture) and isinstance(
        method, Merger | WeightFormerMethod
    ):
        raise InputError(
            f"--student must be the members' architecture for {method.name}, but is "
            f"{student}; leave it out or choose --method kd"
        )
    if isinstance(method, WeightFormerMethod):
        predicted, tuned = weightformer_student(session, ensemble, method)
        return [predicted] if tuned is None else [predicted, tuned]
    if isinstance(method, Merger):
        return [merge_student(session, ensemble, method)]
    return [distil_student(session, ensemble, method, student)]


def fuse_into(
    folder: Path,
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    *,
    command: str,
    student: str | None = None,
    final: Path,
) -> Report:
    """Fuse, and write the run's files into `folder`; return the student's report."""
    made = fuse_students(session, ensemble, method, student)
    report = write_run(
        folder,
        session,
        ensemble,
        made[-1],
        command=command,
        method=method,
        final=final,
    )
    session.clear_checkpoints()
    return report
