"""Schema 1 of report.json: what every command that makes a student writes.

Fractions are never percent. Keys of the fixed schema that a command cannot fill are
null; the optional keys at the end of `Report` are left out instead.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float, Int64
from pydantic import Field, field_validator
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.metrics.calibration import reliability
from metaensemble.metrics.measure import Measured
from metaensemble.report.choice import Choice
from metaensemble.report.findings import AgainstBest, Barrier, Diagnosis
from metaensemble.report.intervals import ClassRow, Intervals
from metaensemble.report.row import Row

SCHEMA = 1


class DataRow(Row):
    """The data: its name, the number of images of each split, and of classes."""

    name: str
    train: int
    validation: int
    test: int
    classes: int


class TestRow(Row):
    """A model of which only the test result matters here."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    test: Measured


class TeacherRow(Row):
    """One member of the ensemble."""

    path: str
    sha256: str
    architecture: str
    test: Measured
    weight: float | None = None
    """Of its outputs in the ensemble; left out where all weigh the same."""


class StudentRow(Row):
    """The one model that was made."""

    test: Measured
    validation: Measured | None = None
    sha256: str | None = None


class NetworkRow(Row):
    """Another network that a run has made."""

    path: str
    """Within the run's folder."""
    sha256: str
    architecture: str
    test: Measured


class Headroom(Row):
    """What there was to win over the average teacher, and how much of it was won."""

    ensemble_minus_mean_teacher: float
    """On test accuracy."""
    recovered: float | None
    """(student - mean teacher) / headroom; null where there was no headroom."""


class Fidelity(Row):
    """The student against its own ensemble, on test."""

    agreement: float
    kl: float


class Cost(Row):
    """What training took and serving takes; null where it was not measured."""

    parameters: int | None = None
    macs: int | None = None
    train_seconds: float | None = None
    train_images: int | None = None
    teacher_images: int | None = None
    latency_ms: float | None = None
    ensemble_latency_ms: float | None = None
    peak_memory_mb: float | None = None


class Reliability(Row):
    """Mean confidence, accuracy and number of examples of each confidence bin."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]


class ReliabilityPair(Row):
    """The bins of the student and of its ensemble, on test."""

    student: Reliability
    ensemble: Reliability
    best_member: Reliability | None = None
    """Of the member that is best on test; left out where it was not kept."""


class Report(Row):
    """One student: where it comes from, what it is worth, what it costs."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    command: str
    method: dict[str, Any]
    """``name`` and the hyperparameters."""
    seed: int | None
    data: DataRow
    teachers: list[TeacherRow]
    mean_teacher: TestRow
    best_teacher: TestRow
    ensemble: TestRow
    student: StudentRow
    headroom: Headroom
    fidelity: Fidelity
    cost: Cost
    environment: dict[str, Any]
    regime: Literal["one-start", "independent"] | None = None
    """Whether the teachers share an initialisation."""
    stage: Literal["predicted", "tuned"] | None = None
    """Of a predictor's student: as predicted, or tuned afterwards."""
    draw: int | None = None
    """Which of several subsets of a zoo the teachers are."""
    verdict: str | None = None
    """One plain sentence, the first that the user reads."""
    notes: list[str] = Field(default_factory=list)
    conditioning: dict[str, float] | None = None
    """Of a predictor: whether its students, as predicted, depend on their teachers, on
    validation; the keys are those of `metaensemble.workflows.conditioning`."""
    reliability: ReliabilityPair | None = None
    history: list[dict[str, int | float | None]] | None = None
    """Points of the training curve: step, images, loss, validation_accuracy, ..."""
    diagnosis: Diagnosis | None = None
    """What was known of the members before the work."""
    barrier: Barrier | None = None
    """The way between the first two members, for methods that merge weights."""
    others: list[NetworkRow] = Field(default_factory=list)
    """What an online method trained beside student and members: a gated ensemble."""
    trained_together: Literal[True] | None = None
    """Set for online methods: the teachers were trained in this very run, and the
    student is one of them."""
    choice: Choice | None = None
    """Of `auto`: what was tried on validation, and why the student is what it is."""
    against_best: AgainstBest | None = None
    """The student and the best member on validation; which of them was shipped."""
    intervals: Intervals | None = None
    """How sure the figures on test are."""
    per_class: list[ClassRow] = Field(default_factory=list)
    """Test accuracy of student and ensemble, class by class."""

    @property
    def fell_back(self) -> bool:
        """Return whether the best member was shipped instead of what was made."""
        return self.against_best is not None and self.against_best.fallback

    @field_validator("method", "environment")
    @classmethod
    def _plain(cls, values: dict[str, Any]) -> dict[str, Any]:
        # pydantic would write a NaN in here as null
        json.dumps(values, allow_nan=False, default=str)
        return values

    @field_validator("method")
    @classmethod
    def _named(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name"), str):
            raise ValueError("method must hold its 'name'")
        return method


class Rows(Row):
    """The file of `demo`: one report per method."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    rows: list[Report]
    seconds: float


class Study(Row):
    """The file of a study under ``benchmarks/``."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    study: str
    rows: list[Report]


def headroom(student: Measured, mean_teacher: Measured, ensemble: Measured) -> Headroom:
    """Return the headroom on accuracy and the share of it that the student recovered.

    Below 0 the student is worse than the average teacher, above 1 better than the
    ensemble; null where the ensemble is not better than its average member.
    """
    room = ensemble.accuracy - mean_teacher.accuracy
    won = student.accuracy - mean_teacher.accuracy
    return Headroom(
        ensemble_minus_mean_teacher=room,
        # the mean of equal accuracies may differ from them in the last bit
        recovered=won / room if room > 1e-9 else None,
    )


def mean_measured(measured: Sequence[Measured]) -> Measured:
    """Return the mean of each number over several models on one set of examples."""
    counts = {m.count for m in measured}
    if len(counts) != 1:
        raise InputError(
            "the mean needs at least one model, all measured on one set, but got "
            f"{len(measured)} on sets of {sorted(counts)} examples"
        )
    names = [name for name in Measured.model_fields if name != "count"]
    means = {n: sum(getattr(m, n) for m in measured) / len(measured) for n in names}
    return Measured(**means, count=measured[0].count)


def reliability_of(
    log_probs: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    bins: int = 15,
) -> Reliability:
    """Return the reliability bins of one model in the form that a report holds."""
    confidence, correct, count = reliability(log_probs, labels, bins)
    return Reliability(
        confidence=confidence.tolist(), accuracy=correct.tolist(), count=count.tolist()
    )
