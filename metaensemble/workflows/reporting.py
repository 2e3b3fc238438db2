"""The report of a student: measured once on test, beside its teachers."""

from dataclasses import dataclass
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
from metaensemble.report.card import UNKNOWN, write_card
from metaensemble.report.contrast import contrasts
from metaensemble.report.intervals import intervals_of, per_class
from metaensemble.report.page import write_page
from metaensemble.report.predictions import (
    FOLDER,
    Answers,
    Predictions,
    save_predictions,
)
from metaensemble.report.verdict import verdict
from metaensemble.teachers import Ensemble, Member, save_member
from metaensemble.workflows.diagnosis import kinship_of
from metaensemble.workflows.notes import kin_note, matching_notes, shown_path
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import Student, evaluate_on, state_of

STUDENT_FILE = "student.safetensors"
PREDICTIONS_FILE = "test.safetensors"
"""In the folder of predictions."""
NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class Reported:
    """A student's report, and what it rests on."""

    report: Report
    predictions: Predictions
    """For the test images."""


def measure_student(
    session: Session,
    ensemble: Ensemble,
    student: Student,
    *,
    command: str,
    method: Method,
    path: Path | None = None,
    found: Findings = NOTHING_FOUND,
) -> Reported:
    """Return report and predictions of a student; this is where test data are touched.

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
    best = max(
        range(len(members)), key=lambda i: (members[i].accuracy, -members[i].nll)
    )
    best_log_probs = logits[best].log_softmax(-1)
    sha256 = sha256_of(path) if path else None
    predictions = Predictions(
        data=data.name,
        classes=tuple(data.classes),
        images=data.test.fingerprint,
        student_sha256=sha256,
        labels=labels,
        models={
            "student": Answers.of(on_test.log_probs, labels),
            "ensemble": Answers.of(together, labels),
            "best_member": Answers.of(best_log_probs, labels),
        },
    )
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
                path=shown_path(member.path, session.folder),
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
        best_teacher=TestRow(test=members[best]),
        ensemble=TestRow(test=whole),
        student=StudentRow(
            test=on_test.measured,
            validation=on_validation.measured,
            sha256=sha256,
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
            *matching_notes(data, ensemble, student),
            *(
                [f"members disagree on {100 * split:.1f} % of the test images"]
                if len(ensemble) > 1
                else []
            ),
            *([kin_note(kin)] if kin else []),
        ],
        reliability=ReliabilityPair(
            student=reliability_of(on_test.log_probs, labels),
            ensemble=reliability_of(together, labels),
            best_member=reliability_of(best_log_probs, labels),
        ),
        history=[dict(row) for row in student.history] or None,
        diagnosis=diagnosis,
        barrier=found.barrier,
        against_best=found.against_best,
        choice=found.choice,
        trained_together=found.trained_together or None,
        others=[
            NetworkRow(
                path=shown_path(member.path, session.folder),
                sha256=member.sha256,
                architecture=member.info.architecture,
                test=evaluate_on(
                    session, member.network(), member.info, data.test
                ).measured,
            )
            for member in found.others
        ],
        intervals=intervals_of(predictions),
        per_class=per_class(predictions),
    )
    told = report.model_copy(update={"verdict": verdict(report)})
    return Reported(told, predictions)


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
    license: str = UNKNOWN,
) -> Report:
    """Write a run's files but config and log into `folder`; return the report.

    They are the student, its report, its predictions for the test images, card and
    page.
    """
    member = save_student(folder / STUDENT_FILE, ensemble, student, method, found)
    reported = measure_student(
        session,
        ensemble,
        student,
        command=command,
        method=method,
        path=member.path,
        found=found,
    )
    report, predictions = reported.report, reported.predictions
    write_report(folder / "report.json", report)
    save_predictions(folder / FOLDER / PREDICTIONS_FILE, predictions)
    write_card(folder / "card.md", report, member.info, license)
    config = folder / "config.yaml"
    write_page(
        folder / "page.html",
        f"{method.name_}: {final.name}",
        [report],
        contrasts=contrasts(predictions, session.data.test),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
    )
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
