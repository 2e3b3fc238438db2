"""The story of `metaensemble demo` comes true: means over three seeds, minutes long."""

import statistics
from pathlib import Path
from typing import get_args

import pytest
import torch

from metaensemble.cli import main
from metaensemble.engine import RunLog
from metaensemble.methods import WeightFormerMethod
from metaensemble.report import Report, read_reports
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.predicting import weightformer_student
from metaensemble.workflows.registry import METHODS
from metaensemble.workflows.story import Regime, Story, teach_zoo, tell

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """A second thread only waits for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=get_args(Regime))
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Report]]:
    """The reports of three seeds, by method and stage."""
    found: dict[str, list[Report]] = {}
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp(f"{request.param}-{seed}")
        story = Story(regime=request.param)
        options = RunOptions(seed=seed, device="cpu", cache=folder / "cache")
        log = RunLog(quiet=True)
        session = open_session(options, story.load(seed), folder, log)
        for report in tell(story, session, folder, "a test"):
            name = report.method["name"]
            key = f"{name} {report.stage}" if report.stage else name
            found.setdefault(key, []).append(report)
    return found


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def recovered(reports: list[Report]) -> float:
    """Gains over headrooms, both summed over the seeds: no small headroom divides."""
    gains = [r.student.test.accuracy - r.mean_teacher.test.accuracy for r in reports]
    rooms = [r.headroom.ensemble_minus_mean_teacher for r in reports]
    return sum(gains) / sum(rooms)


def test_the_regime_is_what_it_says(told):
    regimes = {report.regime for reports in told.values() for report in reports}
    assert len(regimes) == 1


def test_the_ensemble_beats_its_mean_member(told):
    rooms = [r.headroom.ensemble_minus_mean_teacher for r in told["kd"]]
    mean, error = mean_and_error(rooms)
    assert mean > 2 * error, rooms


def test_distillation_recovers_half_of_the_headroom(told):
    assert recovered(told["kd"]) >= 0.5


def test_a_tuned_prediction_recovers_half_of_the_headroom(told):
    assert recovered(told["weightformer tuned"]) >= 0.5


def test_a_prediction_for_unseen_members_is_no_worse_than_a_member(told):
    gains = [
        r.student.test.accuracy - r.mean_teacher.test.accuracy
        for r in told["weightformer predicted"]
    ]
    mean, error = mean_and_error(gains)
    assert mean >= -error, gains


def test_the_command_writes_report_and_page(tmp_path: Path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--quiet", "--out", str(out)]) == 0
    assert "recovered" in capsys.readouterr().out
    rows = [(r.method["name"], r.stage) for r in read_reports(out)]
    assert rows == [
        ("best_member", None),
        ("soup", None),
        ("aligned_soup", None),
        ("kd", None),
        ("weightformer", "predicted"),
        ("weightformer", "tuned"),
    ]
    assert {name for name, _ in rows} <= set(METHODS)
    assert (out / "page.html").read_text().lower().startswith("<!doctype html>")
    assert len(list((out / "students").iterdir())) == 6


def test_the_papers_direct_head_learns(tmp_path: Path):
    story = Story(zoo=1)
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    log = RunLog(quiet=True)
    session = open_session(options, story.load(0), tmp_path, log)
    _, ensemble = teach_zoo(story, session, tmp_path)
    method = WeightFormerMethod(head="direct", epochs=30, tune_epochs=0)
    student, _ = weightformer_student(session, ensemble, method)
    divergences = [row["objective"] for row in student.history]
    assert min(divergences) < divergences[0] / 2, divergences
