import math
from collections.abc import Callable
from typing import Any

import pytest

from metaensemble.metrics import Measured
from metaensemble.report import (
    Cost,
    DataRow,
    Fidelity,
    Reliability,
    ReliabilityPair,
    Report,
    StudentRow,
    TeacherRow,
    TestRow,
    headroom,
)

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
    changes = {"data": data, "teachers": teachers, "environment": environment}
    return report.model_copy(update=changes)
