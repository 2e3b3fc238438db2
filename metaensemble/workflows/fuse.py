"""N trained models in, one student out, by any method."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.markup import escape

from metaensemble.core.errors import InputError
from metaensemble.merging import BestMember, Merger
from metaensemble.methods import Auto, OnlineMethod, WeightFormerMethod
from metaensemble.models import Architecture, build
from metaensemble.report import AgainstBest, Diagnosis, Findings, Report
from metaensemble.report.card import UNKNOWN
from metaensemble.report.choice import Choice
from metaensemble.teachers import Ensemble, MemberInfo
from metaensemble.workflows.auto import auto_student
from metaensemble.workflows.barrier import barrier_after
from metaensemble.workflows.candidates import Kept
from metaensemble.workflows.diagnosis import against_best, diagnose, misfit
from metaensemble.workflows.doubts import doubts
from metaensemble.workflows.options import (
    CardOptions,
    DataOptions,
    MemberOptions,
    RunOptions,
    Session,
)
from metaensemble.workflows.predicting import weightformer_student
from metaensemble.workflows.registry import AnyMethod, MethodUnion
from metaensemble.workflows.reporting import write_run
from metaensemble.workflows.students import (
    Student,
    distil_student,
    evaluate_on,
    merge_student,
    student_info,
)
from metaensemble.workflows.temperature import calibrated, refuse_without_head
from metaensemble.workflows.weighting import (
    Select,
    Weights,
    parse_weights,
    refuse_too_few,
    weighed,
)

Fallback = Literal["none", "best-member"]
"""What is shipped where the student is below the best member on validation."""


@dataclass(frozen=True)
class Choices:
    """What a user chooses beside members, data and method; see `FuseOptions`."""

    student: str | None = None
    fallback: Fallback = "none"
    select: Select = "none"
    teacher_weights: Weights = "equal"
    calibrate: bool = False
    license: str = UNKNOWN


NO_CHOICES = Choices()


class FuseOptions(CardOptions, RunOptions, MemberOptions, DataOptions):
    """Make one model of N trained ones."""

    members: tuple[Path, ...] = ()
    """Member files, or folders of them. Methods that distil take a single one, too;
    online methods none: they train networks of their own, of the architecture
    --student; self_distillation works with and without."""
    out: Path
    """The run: a folder that appears whole or not at all."""
    student: str | None = None
    """Architecture of the student, for methods that allow another; default: that of
    the first member."""
    unlabelled: bool = False
    """Distil also on the training images that --limit-train leaves out, unlabelled."""
    select: Select = "none"
    """greedy: first select members on validation, with replacement, as long as the
    ensemble's NLL falls (Caruana et al. 2004); how often one was taken weighs its
    outputs."""
    teacher_weights: str = "equal"
    """How much each member's outputs weigh: equal, validation (the weights of the
    smallest NLL there), or numbers such as 0.5,0.3,0.2 in the members' order."""
    calibrate: bool = False
    """Fit a temperature on validation and fold it into the student's last layer."""
    fallback: Fallback = "none"
    """best-member: where the student is below the best member on validation, the run
    holds that member instead, and says so."""
    overwrite: bool = False
    """Replace the run if it exists."""

    @property
    def choices(self) -> Choices:
        """Return what is chosen beside members, data and method."""
        return Choices(
            self.student,
            self.fallback,
            self.select,
            self.teacher_weights,
            self.calibrate,
            self.license,
        )


class FuseConfig(FuseOptions):
    """`FuseOptions` with the method: what config.yaml holds."""

    method: AnyMethod = Field(discriminator="name")
    """How."""


@dataclass(frozen=True)
class Fusion:
    """What came of members, a method and a user's choices."""

    student: Student
    """The one to ship, which with a fallback may be the best member."""
    ensemble: Ensemble
    """The members that it was made of, as selected and weighed."""
    found: Findings
    """What was found out beside it."""


def fuse_students(
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    student: str | None = None,
    merged: Student | None = None,
) -> list[Student]:
    """Return the student that a method makes, the last being the one to ship.

    WeightFormer gives two: as predicted, and tuned. `merged` is what the start of a
    distillation makes of these members, where that was made already.

    Raises:
        InputError: the method cannot work with these members or this student.
    """
    refuse_unsuited(ensemble, method, student)
    if isinstance(method, Auto):
        return [_automatic(session, ensemble, method, None, student)[0]]
    if isinstance(method, WeightFormerMethod):
        predicted, tuned = weightformer_student(session, ensemble, method)
        return [predicted] if tuned is None else [predicted, tuned]
    if isinstance(method, Merger):
        return [merge_student(session, ensemble, method)]
    own = _canonical(student)
    return [distil_student(session, ensemble, method, own, merged)]


def fuse_and_find(
    session: Session,
    given: Ensemble,
    method: MethodUnion,
    choices: Choices = NO_CHOICES,
) -> Fusion:
    """Select, weigh and diagnose members, fuse them, compare with the best one.

    Comparison is on validation, with all members that were given. Where selection
    leaves one member to a method that merges several, that member is the student.

    Raises:
        InputError: the method cannot work with these members or this student, or the
            weights are none.
    """
    refuse_too_few(given, method.name_, method.fewest_members)
    refuse_unsuited(given, method, choices.student)
    parse_weights(choices.teacher_weights, len(given))
    if choices.calibrate:
        refuse_without_head(_expected(session, given, method, choices.student))
    doubted = tell_doubts(session, given)
    chosen = weighed(session, given, choices.select, choices.teacher_weights)
    ensemble, notes = chosen.ensemble, (*doubted, *chosen.notes)
    for note in chosen.notes:
        session.log.say(escape(note))
    diagnosis = diagnose(session, ensemble) if len(ensemble) > 1 else None
    if diagnosis is not None:
        tell(session, diagnosis, misfit(diagnosis, method))
    how = method
    if len(ensemble) < method.fewest_members:
        how = BestMember()
        notes = (*notes, f"one member is left for {method.name_}: it is the student")
    choice: Choice | None = None
    if isinstance(how, Auto):
        made, choice = _automatic(session, ensemble, how, diagnosis, choices.student)
    else:
        made = fuse_students(session, ensemble, how, choices.student)[-1]
    images = made.teacher_images + chosen.teacher_images
    made = replace(made, teacher_images=images)
    if choices.calibrate:
        made = calibrated(session, made)
    against = None
    if not isinstance(method, BestMember):
        made, against = _compared(session, given, made, choices)
    barrier, more = barrier_after(session, ensemble, method)
    found = Findings(diagnosis, barrier, against, (*notes, *more), choice=choice)
    return Fusion(made, ensemble, found)


def tell(session: Session, diagnosis: Diagnosis, warning: str | None = None) -> None:
    """Show a diagnosis and log it."""
    session.log.event("diagnosis", **diagnosis.model_dump(mode="json"), warning=warning)
    for line in [*diagnosis.lines, *([warning] if warning else [])]:
        session.log.say(escape(line))


def tell_doubts(session: Session, ensemble: Ensemble) -> list[str]:
    """Show what speaks against how members are run, and return it."""
    found = doubts(session, ensemble)
    for doubt in found:
        session.log.say(escape(f"warning: {doubt}"))
    return found


def fuse_into(
    folder: Path,
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    choices: Choices = NO_CHOICES,
    *,
    command: str,
    final: Path,
) -> Report:
    """Fuse, and write the run's files into `folder`; return the student's report."""
    made = fuse_and_find(session, ensemble, method, choices)
    report = write_run(
        folder,
        session,
        made.ensemble,
        made.student,
        command=command,
        method=method,
        final=final,
        found=made.found,
        license=choices.license,
    )
    session.clear_checkpoints()
    Kept(session).clear()
    return report


def refuse_unsuited(
    ensemble: Ensemble, method: MethodUnion, student: str | None = None
) -> None:
    """Refuse, before any work, members or a student that a method cannot work with.

    Raises:
        InputError: the student's architecture is none, or not the members' where the
            method needs that; or the members' architectures differ.
    """
    if isinstance(method, OnlineMethod) and not method.takes_members:
        raise InputError(
            f"{method.name_} trains its networks itself and takes no members, but got "
            f"{len(ensemble)}; leave them out and add --student ARCHITECTURE"
        )
    student = _canonical(student)
    if student not in (None, ensemble.info.architecture) and isinstance(
        method, Merger | WeightFormerMethod
    ):
        raise InputError(
            f"--student must be the members' architecture for {method.name_}, but is "
            f"{student}; leave it out or choose --method kd"
        )
    if student is not None:
        build(student, len(ensemble.info.classes), ensemble.info.input_shape)
    if "one architecture" in method.needs:
        ensemble.one_architecture(
            f"the members of {method.name_} must share one architecture"
        )


def _automatic(
    session: Session,
    ensemble: Ensemble,
    method: Auto,
    diagnosis: Diagnosis | None,
    student: str | None,
) -> tuple[Student, Choice]:
    own = _canonical(student)
    same = own in (None, ensemble.info.architecture)

    def make(one: MethodUnion, merged: Student | None) -> Student:
        asked = None if isinstance(one, Merger) else own
        return fuse_students(session, ensemble, one, asked, merged)[-1]

    found = diagnosis or (diagnose(session, ensemble) if len(ensemble) > 1 else None)
    return auto_student(session, ensemble, method, make, found, None if same else own)


def _canonical(student: str | None) -> str | None:
    return None if student is None else str(Architecture.parse(student))


def _expected(
    session: Session, ensemble: Ensemble, method: MethodUnion, student: str | None
) -> MemberInfo:
    """Return the record that the student will have, as far as it is known."""
    if isinstance(method, Merger | WeightFormerMethod):
        return ensemble.info
    return student_info(session, ensemble, _canonical(student))


def _compared(
    session: Session, given: Ensemble, made: Student, choices: Choices
) -> tuple[Student, AgainstBest]:
    """Return what to ship, and the student made beside the best member."""
    split = session.data.validation
    on_validation = evaluate_on(session, made.network, made.info, split)
    against, best = against_best(session, given, on_validation.log_probs)
    if not against.worse or choices.fallback == "none":
        return made, against
    member = given.members[best]
    network = member.network().to(session.device)
    shipped = replace(
        made, network=network, info=member.info, stage=None, temperature=None
    )
    if choices.calibrate:
        shipped = calibrated(session, shipped)
    return shipped, against.model_copy(update={"fallback": True})
