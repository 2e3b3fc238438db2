import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.data import TensorSplit
from metaensemble.metrics import Measured
from metaensemble.report import (
    AgainstBest,
    Barrier,
    Cost,
    Curve,
    DataRow,
    Diagnosis,
    Fidelity,
    NetworkRow,
    Point,
    Reliability,
    ReliabilityPair,
    Report,
    StudentRow,
    TeacherRow,
    TestRow,
    headroom,
)
from metaensemble.report.comparison import differences
from metaensemble.report.contrast import contrasts
from metaensemble.report.intervals import intervals_of, per_class
from metaensemble.report.page import write_page
from metaensemble.report.predictions import Answers, Predictions
from metaensemble.teachers import Kinship

Make = Callable[..., Report]


def measured(accuracy: float, ece: float = 0.03) -> Measured:
    top5, nll = (1 + accuracy) / 2, -math.log(accuracy)
    brier = 1.6 * (1 - accuracy)
    return Measured(
        accuracy=accuracy, top5=top5, nll=nll, brier=brier, ece=ece, count=500
    )


def bins(bend: float) -> Reliability:
    middles = [(i + 0.5) / 15 for i in range(15)]
    return Reliability(
        confidence=middles, accuracy=[m**bend for m in middles], count=[*range(15)]
    )


def build(
    accuracy: float = 0.96, name: str = "kd", teachers: str = "a", **changes: Any
) -> Report:
    """A report whose mean teacher is right at 0.9, ensemble at 0.98."""
    mean, ensemble, student = measured(0.9), measured(0.98), measured(accuracy)
    values: dict[str, Any] = {
        "command": "metaensemble fuse zoo/*.safetensors --method kd --out run",
        "method": {"name": name, "temperature": 4.0},
        "seed": 0,
        "data": DataRow(name="digits", train=1000, validation=100, test=500, classes=9),
        "teachers": [
            TeacherRow(
                path=f"zoo/{i}.safetensors",
                sha256=f"{teachers}{i}" * 32,
                architecture="mlp",
                test=measured(value),
            )
            for i, value in enumerate((0.88, 0.92))
        ],
        "mean_teacher": TestRow(test=mean),
        "best_teacher": TestRow(test=measured(0.92)),
        "ensemble": TestRow(test=ensemble),
        "student": StudentRow(test=student, validation=measured(0.95), sha256="f" * 64),
        "headroom": headroom(student, mean, ensemble),
        "fidelity": Fidelity(agreement=0.97, kl=0.05),
        "cost": Cost(
            parameters=26_122,
            macs=25_900,
            train_seconds=12.5,
            train_images=60_000,
            teacher_images=2000,
            latency_ms=0.21,
            ensemble_latency_ms=0.83,
            peak_memory_mb=412.3,
        ),
        "environment": {"python": "3.11", "torch": "2.13", "threads": 2},
        "reliability": ReliabilityPair(student=bins(0.8), ensemble=bins(1.3)),
    }
    return Report(**(values | changes))


def curve(*points: tuple[float, float, float]) -> Curve:
    return Curve.of([Point(alpha=a, accuracy=b, nll=c) for a, b, c in points])


def between(name: str = "a.safetensors", *, aligned: bool = True) -> Barrier:
    ends = (0.0, 0.9, 0.3), (1.0, 0.8, 0.5)
    return Barrier(
        first=name,
        second="b.safetensors",
        images=500,
        as_given=curve(ends[0], (0.5, 0.1, 2.4), ends[1]),
        aligned=curve(ends[0], (0.5, 0.7, 0.9), ends[1]) if aligned else None,
    )


def diagnosed(name: str = "b.safetensors") -> Diagnosis:
    return Diagnosis(
        members=2,
        architectures=["mlp"],
        kinship=Kinship(one_start=False, cosine=0.01, recorded=True),
        distance=1.41,
        barrier=between(name, aligned=False),
        soup_drop=0.75,
        images=500,
        mean_member=0.85,
        ensemble=0.95,
        headroom=0.1,
        headroom_error=0.01,
        disagreement=0.2,
        best_member=name,
        best_member_accuracy=0.9,
        recommended=["repair", "kd"],
        verdict=f"Do what {name} does.",
        notes=[],
    )


def beside(
    student: float, nll: float = 0.4, name: str = "b.safetensors", **changes: Any
) -> AgainstBest:
    """A student beside a member of 90 %, on 500 images, give or take 1 point."""
    values: dict[str, Any] = {
        "best_member": name,
        "sha256": "a" * 64,
        "member_accuracy": 0.9,
        "member_nll": 0.3,
        "student_accuracy": student,
        "student_nll": nll,
        "error": 0.01,
        "nll_error": 0.02,
        "images": 500,
        "worse": student < 0.9 or (student == 0.9 and nll > 0.3),
    }
    return AgainstBest(**(values | changes))


@pytest.fixture
def findings() -> dict[str, Any]:
    """Keys of a report on what was found out beside the student."""
    return {
        "diagnosis": diagnosed(),
        "barrier": between(),
        "against_best": beside(0.85),
    }


@pytest.fixture
def against() -> Callable[..., AgainstBest]:
    return beside


def answered(seed: int = 0, images: int = 200, sha256: str = "f" * 64) -> Predictions:
    """Predictions for random images of 9 classes; the ensemble is the surest."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(9, (images,), generator=torch.Generator().manual_seed(7))

    def answers(strength: float) -> Answers:
        logits = torch.randn(images, 9, generator=random)
        logits[torch.arange(images), labels] += strength
        return Answers.of(logits.log_softmax(-1), labels)

    return Predictions(
        data="digits",
        classes=tuple("abcdefghi"),
        images="0" * 64,
        student_sha256=sha256,
        labels=labels,
        models={
            "student": answers(2.0),
            "ensemble": answers(3.0),
            "best_member": answers(1.0),
        },
    )


@pytest.fixture
def predicted() -> Callable[..., Predictions]:
    return answered


@pytest.fixture
def test_split() -> TensorSplit:
    """The images of `predicted`: small, grey, random."""
    random = torch.Generator().manual_seed(1)
    shape = (200, 1, 8, 8)
    images = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return TensorSplit(images, answered().labels)


@pytest.fixture(scope="session")
def full_page() -> Callable[[Path], None]:
    """Write a page that has every section and every figure."""

    def write(path: Path) -> None:
        reports, kept = [], []
        for place, (accuracy, name, seed) in enumerate(
            ((0.96, "kd", 0), (0.95, "kd", 1), (0.93, "soup", 0), (0.2, "repair", 0))
        ):
            predictions = answered(place, sha256=str(place) * 64)
            kept.append(predictions)
            student = StudentRow(test=measured(accuracy), sha256=str(place) * 64)
            bends = ReliabilityPair(
                student=bins(0.8), ensemble=bins(1.3), best_member=bins(1.1)
            )
            history = [
                {"images": 1000 * i, "accuracy": 0.85 + 0.02 * i} for i in range(5)
            ]
            report = build(
                accuracy,
                name,
                seed=seed,
                student=student,
                diagnosis=diagnosed(),
                barrier=between(),
                history=history,
                reliability=bends,
                intervals=intervals_of(predictions),
                per_class=per_class(predictions),
                notes=["a note of some length " * 5],
                trained_together=True,
                others=[
                    NetworkRow(
                        path="networks/gated.safetensors",
                        sha256="e" * 64,
                        architecture="mlp",
                        test=measured(0.97),
                    )
                ],
                cost=Cost(
                    parameters=26_122,
                    macs=25_900,
                    train_seconds=12.5 * (place + 1),
                    train_images=4000 + place,
                    latency_ms=0.21,
                    ensemble_latency_ms=0.83,
                ),
            )
            reports.append(report)
        images = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8)
        write_page(
            path,
            "a run",
            reports,
            contrasts=contrasts(answered(), TensorSplit(images, answered().labels)),
            differences=differences(reports, kept),
            config="seed: 0\nmethod:\n  name: kd\n",
        )

    return write


@pytest.fixture
def make() -> Make:
    return build


@pytest.fixture
def hostile() -> Report:
    """A report whose every free text wants to be markup."""
    evil = '<script src="http://evil.example/x.js">alert(1)</script>|`*['
    report = build(name=evil, command=evil, verdict=evil, notes=[evil])
    data = report.data.model_copy(update={"name": evil})
    teachers = [t.model_copy(update={"path": evil}) for t in report.teachers]
    environment = {"platform": evil}
    changes = {
        "data": data,
        "teachers": teachers,
        "environment": environment,
        "diagnosis": diagnosed(evil),
        "barrier": between(evil),
        "against_best": beside(0.1, name=evil),
    }
    return report.model_copy(update=changes)
