"""The report of a student: measured once on test, beside its teachers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.core.files import sha256_of
from metaensemble.core.method import Method
from metaensemble.data import ImageData
from metaensemble.metrics import (
    agreement,
    disagreement,
    kl_to,
    latency_ms,
    macs,
    measure,
    parameters,
    peak_memory_mb,
)
from metaensemble.report import (
    Cost,
    DataRow,
    Fidelity,
    Findings,
    NetworkRow,
    ReliabilityPair,
    Report,
    StudentRow,
    TeacherRow,
    TestRow,
    environment,
    headroom,
    mean_measured,
    reliability_of,
    write_report,
)
from metaensemble.report.card import write_card
from metaensemble.report.page import write_page
from metaensemble.report.verdict import verdict
from metaensemble.teachers import Ensemble, Kinship, Member, save_member
from metaensemble.workflows.diagnosis import kinship_of
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import Student, evaluate_on, state_of

STUDENT_FILE = "student.safetensors"
NOTHING_FOUND = Findings()


def report_student(
    session: Session,
    ensemble: Ensemble,
    student: Student,
    *,
    command: str,
    method: Method,
    path: Path | None = None,
    found: Findings = NOTHING_FOUND,
) -> Report:
    """Return the report of a student; this is where test data are touched.

    Args:
        session: data, cache, device, seed.
        ensemble: the teachers.
        student: what was made of them.
        command: the command's name.
        method: how it was made.
        path: the student's file, for its hash.
        found: what is known beside the student.
    """
    data, device = session.data, session.device
    labels = data.test.labels
    logits = session.cache.ensemble_logits(ensemble, data.test)
    members = [measure(rows.log_softmax(-1), labels) for rows in logits]
    together = ensemble.log_probs(logits)
    on_test = evaluate_on(session, student.network, student.info, data.test)
    on_validation = evaluate_on(session, student.network, student.info, data.validation)
    mean, whole = mean_measured(members), measure(together, labels)
    diagnosis = found.diagnosis
    kin = kinship_of(ensemble) if diagnosis is None else diagnosis.kinship
    split = disagreement(logits.log_softmax(-1))
    report = Report(
        command=command,
        method=method.model_dump(mode="json"),
        seed=session.seed,
        data=data_row(data),
        teachers=[
            TeacherRow(
                path=_shown(member.path, session.folder),
                sha256=member.sha256,
                architecture=member.info.architecture,
                test=measured,
                weight=None if ensemble.weights is None else weight,
            )
            for member, measured, weight in zip(
                ensemble.members, members, ensemble.shares, strict=True
            )
        ],
        mean_teacher=TestRow(test=mean),
        best_teacher=TestRow(test=max(members, key=lambda m: (m.accuracy, -m.nll))),
        ensemble=TestRow(test=whole),
        student=StudentRow(
            test=on_test.measured,
            validation=on_validation.measured,
            sha256=sha256_of(path) if path else None,
        ),
        headroom=headroom(on_test.measured, mean, whole),
        fidelity=Fidelity(
            agreement=agreement(on_test.log_probs, together),
            kl=kl_to(together, on_test.log_probs),
        ),
        cost=_cost(session, ensemble, student),
        environment=environment(str(device)),
        regime=None if kin is None else kin.regime,
        stage=student.stage,
        notes=[
            *student.notes,
            *(diagnosis.notes if diagnosis else []),
            *found.notes,
            *_matching_notes(data, ensemble, student),
            *(
                [f"members disagree on {100 * split:.1f} % of the test images"]
                if len(ensemble) > 1
                else []
            ),
            *([_kin_note(kin)] if kin else []),
        ],
        reliability=ReliabilityPair(
            student=reliability_of(on_test.log_probs, labels),
            ensemble=reliability_of(together, labels),
        ),
        history=[dict(row) for row in student.history] or None,
        diagnosis=diagnosis,
        barrier=found.barrier,
        against_best=found.against_best,
        trained_together=found.trained_together or None,
        others=[
            NetworkRow(
                path=_shown(member.path, session.folder),
                sha256=member.sha256,
                architecture=member.info.architecture,
                test=evaluate_on(
                    session, member.network(), member.info, data.test
                ).measured,
            )
            for member in found.others
        ],
    )
    return report.model_copy(update={"verdict": verdict(report)})


def write_run(
    folder: Path,
    session: Session,
    ensemble: Ensemble,
    student: Student,
    *,
    command: str,
    method: Method,
    final: Path,
    found: Findings = NOTHING_FOUND,
) -> Report:
    """Write a run's student, report, card and page into `folder`; return the report."""
    member = save_student(folder / STUDENT_FILE, ensemble, student, method, found)
    report = report_student(
        session,
        ensemble,
        student,
        command=command,
        method=method,
        path=member.path,
        found=found,
    )
    write_report(folder / "report.json", report)
    write_card(folder / "card.md", report)
    write_page(folder / "page.html", f"{method.name_}: {final.name}", [report])
    test = report.student.test.model_dump(mode="json")
    session.log.event("student", method=method.name_, stage=student.stage, test=test)
    return report


def save_student(
    path: Path,
    ensemble: Ensemble,
    student: Student,
    method: Method,
    found: Findings = NOTHING_FOUND,
) -> Member:
    """Write a student as a member file; its record names its teachers.

    Where the best member was shipped instead, ``fallback`` is its hash.
    The record holds nothing but what made the weights, so that a repeated or resumed
    run writes the same bytes.
    """
    training: dict[str, Any] = {
        "method": method.model_dump(mode="json"),
        "stage": student.stage,
        "teachers": [member.sha256 for member in ensemble.members],
    }
    against = found.against_best
    if ensemble.weights is not None:
        training["teacher_weights"] = list(ensemble.weights)
    if student.temperature is not None:
        training["temperature"] = student.temperature
    if against is not None and against.fallback:
        training["fallback"] = against.sha256
    info = student.info.model_copy(
        update={"training": training, "metrics": {}, "start": None}
    )
    return save_member(path, state_of(student.network), info)


def data_row(data: ImageData) -> DataRow:
    """Return the report's record of the data."""
    return DataRow(
        name=data.name,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        classes=data.num_classes,
    )


def latency_of(network: nn.Module, example: Tensor) -> float:
    """Return the milliseconds that a network takes for one image."""
    with torch.inference_mode():
        return latency_ms(lambda: network(example))


def _cost(session: Session, ensemble: Ensemble, student: Student) -> Cost:
    shape = student.info.input_shape
    example = torch.zeros(1, *shape, device=session.device)
    together = 0.0
    for member in ensemble.members:  # one in memory at a time
        network = member.network().to(session.device)
        theirs = torch.zeros(1, *member.info.input_shape, device=session.device)
        together += latency_of(network, theirs)
    return Cost(
        parameters=parameters(student.network),
        macs=macs(student.network, shape),
        train_seconds=student.train_seconds,
        train_images=student.train_images,
        teacher_images=student.teacher_images,
        latency_ms=latency_of(student.network.eval(), example),
        ensemble_latency_ms=together,
        peak_memory_mb=peak_memory_mb(),
    )


def _matching_notes(data: ImageData, ensemble: Ensemble, student: Student) -> list[str]:
    """Return what was matched between the data and the networks, a fact each."""
    notes = []
    turned = [m.name for m in ensemble.members if m.order is not None]
    if turned:
        notes.append(
            f"classes of {', '.join(turned)} are in another order than those of "
            f"{data.name}; they are matched by name"
        )
    sizes: dict[tuple[int, int], list[str]] = {}
    for member in ensemble.members:
        if member.image_size is not None:
            sizes.setdefault(member.info.input_shape[1:], []).append(member.name)
    for size, names in sizes.items():
        notes.append(
            f"images of {_pixels(data.input_shape[1:])} are resized to "
            f"{_pixels(size)} for {', '.join(names)}"
        )
    if student.info.classes != data.classes:
        notes.append(f"the student's classes are in another order than {data.name}'s")
    if student.info.input_shape != data.input_shape:
        size = _pixels(student.info.input_shape[1:])
        notes.append(f"the student takes images of {size}")
    return notes


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _shown(path: Path, folder: Path | None) -> str:
    """Return a member's path; within the run's own folder, relative to it."""
    inside = folder is not None and path.is_relative_to(folder)
    return str(path.relative_to(folder)) if folder and inside else str(path)


def _kin_note(kin: Kinship) -> str:
    source = "their records say" if kin.recorded else "judged by the cosine"
    return (
        f"members are {kin.regime} ({source}); mean cosine of their weights "
        f"{kin.cosine:.2f}"
    )
