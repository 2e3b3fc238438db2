import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.metrics import Measured, expected_calibration_error
from metaensemble.report import (
    Cost,
    Curve,
    Headroom,
    Point,
    Report,
    Rows,
    Study,
    as_json,
    environment,
    headroom,
    mean_measured,
    read_report,
    read_reports,
    reliability_of,
    write_report,
)

Make = Callable[..., Report]
M = {"accuracy", "top5", "nll", "brier", "ece", "count"}


def measured(accuracy: float, count: int = 100) -> Measured:
    return Measured(accuracy=accuracy, top5=1, nll=1, brier=1, ece=0, count=count)


def test_a_written_report_has_exactly_the_keys_of_the_design(
    make: Make, tmp_path: Path
):
    write_report(tmp_path / "report.json", make(reliability=None))
    value = json.loads((tmp_path / "report.json").read_text())
    assert value["schema"] == 1
    assert {k: set(v) if isinstance(v, dict) else None for k, v in value.items()} == {
        "schema": None,
        "command": None,
        "method": {"name", "temperature"},
        "seed": None,
        "data": {"name", "train", "validation", "test", "classes"},
        "teachers": None,
        "mean_teacher": {"test"},
        "best_teacher": {"test"},
        "ensemble": {"test"},
        "student": {"test", "validation", "sha256"},
        "headroom": {"ensemble_minus_mean_teacher", "recovered"},
        "fidelity": {"agreement", "kl"},
        "cost": {
            "parameters",
            "macs",
            "train_seconds",
            "train_images",
            "teacher_images",
            "latency_ms",
            "ensemble_latency_ms",
            "peak_memory_mb",
        },
        "environment": {"python", "torch", "threads"},
    }
    assert set(value["teachers"][0]) == {"path", "sha256", "architecture", "test"}
    for model in ("mean_teacher", "best_teacher", "ensemble", "student"):
        assert set(value[model]["test"]) == M


def test_a_report_survives_the_round_trip(make: Make, tmp_path: Path):
    report = make(
        regime="one-start",
        stage="tuned",
        draw=3,
        verdict="Worth it.",
        notes=["a"],
        conditioning={"gap": 0.1},
        history=[{"step": 10, "images": 640, "loss": 0.5, "validation_accuracy": None}],
    )
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == report
    history = json.loads((tmp_path / "report.json").read_text())["history"]
    assert str(history[0]["step"]) == "10"  # a whole number stays whole


def test_what_was_found_survives_the_round_trip(make: Make, tmp_path: Path, findings):
    report = make(**findings)
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path) == report
    value = json.loads((tmp_path / "report.json").read_text())
    assert value["barrier"]["as_given"]["barrier"] == pytest.approx(2.4 - 0.4)
    assert value["diagnosis"]["kinship"]["one_start"] is False
    assert value["against_best"]["worse"] is True
    assert not set(findings) & set(as_json(make()))


def test_a_barrier_worked_by_hand():
    points = [(0, 0.9, 0.3), (0.25, 0.6, 1.0), (0.5, 0.7, 1.5), (1, 0.8, 0.5)]
    curve = Curve.of([Point(alpha=a, accuracy=b, nll=c) for a, b, c in points])
    assert curve.barrier == pytest.approx(1.5 - 0.4)
    assert curve.accuracy_drop == pytest.approx(0.85 - 0.6)
    assert curve.text == "barrier +1.100 nats, accuracy -25.0 points"


def test_fixed_keys_are_null_and_optional_keys_are_left_out(make: Make):
    value = as_json(make(cost=Cost(), seed=None, reliability=None))
    assert set(value["cost"].values()) == {None}
    assert value["seed"] is None
    assert not {"regime", "stage", "draw", "verdict", "notes", "history"} & set(value)


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        (lambda rows: Rows(rows=rows, seconds=1.5), {"schema", "rows", "seconds"}),
        (lambda rows: Study(study="x", rows=rows), {"schema", "study", "rows"}),
    ],
)
def test_rows_and_studies_hold_reports(
    make: Make, tmp_path: Path, document: Callable, keys: set[str]
):
    rows = [make(seed=0), make(seed=1)]
    write_report(tmp_path / "report.json", document(rows))
    value = json.loads((tmp_path / "report.json").read_text())
    assert set(value) == keys
    assert "regime" not in value["rows"][0]
    assert read_reports(tmp_path) == rows
    with pytest.raises(InputError, match=r"one report is wanted here.*holds 2 rows"):
        read_report(tmp_path)


def test_a_nan_is_refused(make: Make):
    with pytest.raises(ValidationError, match="kl"):
        make(fidelity={"agreement": 1.0, "kl": float("nan")})
    with pytest.raises(ValidationError, match="history"):
        make(history=[{"loss": float("nan")}])
    with pytest.raises(ValidationError, match="not JSON compliant"):
        make(method={"name": "kd", "temperature": float("nan")})


def test_a_method_without_a_name_is_refused(make: Make):
    with pytest.raises(ValidationError, match="method must hold its 'name'"):
        make(method={"temperature": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2}', "must be of schema 1, but .* has schema 2; read it with"),
        ("[]", "must be of schema 1, but .* has schema None"),
        ("{", "a report must be JSON, but .* is not"),
        ('{"schema": 1}', "must follow schema 1, but in .* 'command' does not .Field"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_report(tmp_path)


def test_a_missing_report_is_refused(tmp_path: Path):
    with pytest.raises(MissingFileError, match="does not exist; make one with: meta"):
        read_report(tmp_path)


def test_headroom_worked_by_hand():
    found = headroom(measured(0.95), measured(0.9), measured(0.98))
    assert found.ensemble_minus_mean_teacher == pytest.approx(0.08)
    assert found.recovered == pytest.approx(0.05 / 0.08)


@pytest.mark.parametrize("ensemble", [0.9, 0.85])
def test_nothing_is_recovered_where_there_was_no_headroom(ensemble: float):
    room = ensemble - 0.9
    expected = Headroom(ensemble_minus_mean_teacher=room, recovered=None)
    assert headroom(measured(0.95), measured(0.9), measured(ensemble)) == expected


def test_identical_teachers_have_no_headroom():
    same = measured(0.1)
    mean = mean_measured([same, same, same])  # 0.10000000000000002, perhaps
    assert headroom(same, mean, same).recovered is None


def test_mean_measured_averages_each_number():
    mean = mean_measured([measured(0.5), measured(1.0)])
    assert mean == measured(0.75)


@pytest.mark.parametrize("models", [[], [measured(1), measured(1, count=7)]])
def test_a_mean_over_different_sets_is_refused(models: list[Measured]):
    with pytest.raises(InputError, match="all measured on one set, but got"):
        mean_measured(models)


def test_reliability_bins_hold_the_calibration_error():
    log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]).log()
    labels = torch.tensor([0, 1, 1])
    bins = reliability_of(log_probs, labels)
    parts = zip(bins.confidence, bins.accuracy, bins.count, strict=True)
    ece = sum(abs(c - a) * n for c, a, n in parts) / 3
    assert ece == pytest.approx(expected_calibration_error(log_probs, labels))


def test_the_environment_names_versions_threads_and_device():
    found = environment("cpu")
    assert set(found) == {
        "python",
        "torch",
        "metaensemble",
        "platform",
        "threads",
        "device",
    }
    assert found["threads"] == torch.get_num_threads()
