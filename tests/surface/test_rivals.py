"""The tables beside rivals are what their report says, wins and losses alike."""

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "rivals"
REPORT = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("rows")
    for name in ("rows", "linked"):
        sys.modules.pop(name, None)


def one(rows: Any, ours: float | None, theirs: float | None, **more: Any) -> Any:
    return rows.row("soup", "x", "1", "case", "figure", ours, theirs, "s", **more)


def test_the_tables_are_the_report(rows):
    table = (FOLDER / "table.md").read_text(encoding="utf-8")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert table == rows.table(REPORT["rows"])
    assert readme == rows.filled(readme, REPORT["rows"])


def test_every_question_has_an_answer(rows):
    assert {each["question"] for each in REPORT["rows"]} == set(rows.QUESTIONS)


def test_figures_are_medians_of_the_runs():
    runs = [each for each in REPORT["rows"] if "ours_runs" in each]
    assert runs
    for each in runs:
        for side in ("ours", "theirs"):
            assert each[side] == statistics.median(each[f"{side}_runs"])


def test_a_rival_that_did_not_run_has_a_reason():
    for each in REPORT["rows"]:
        missing = each["ours"] is None or each["theirs"] is None
        assert missing == (each["question"] == "absent")
        assert not missing or each["note"]


def test_what_other_studies_measured_is_what_they_say(rows):
    linked = list(importlib.import_module("linked").rows())
    taken = [dict(each) for each in REPORT["rows"] if each["asked"] == "linked"]
    for each in taken:
        del each["asked"]
    # if not: run.py --only linked
    assert taken == linked


def test_reasons_for_differences_hold():
    for each in REPORT["rows"]:
        if "theirs_in_float64" in each:
            assert each["theirs_in_float64"] == pytest.approx(each["ours"], abs=1e-6)
        if "p1" in each:
            assert each["p1"] == pytest.approx(each["theirs"], rel=1e-5)
            assert each["ours"] != pytest.approx(each["theirs"], rel=0.1)


def test_versions_are_pinned():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    files = list(FOLDER.glob("requirements-*.txt"))
    assert files
    for file in files:
        lines = file.read_text(encoding="utf-8").split()
        assert all("==" in line for line in lines)
        torch = [line for line in lines if line.startswith("torch==")]
        assert all(line in constraints for line in torch)


@pytest.mark.parametrize(
    ("figures", "more", "said"),
    [
        ((1.0, 2.0), {"better": "lower"}, "ours, 2.00 x"),
        ((1.0, 2.0), {"better": "higher"}, "theirs, 2.00 x"),
        ((3.0, 2.0), {"better": "lower"}, "theirs, 1.50 x"),
        ((2.0, 2.0), {"better": "lower"}, "equal"),
        ((0.5, 0.5), {"tolerance": 1e-6}, "equal"),
        ((0.5, 0.5000001), {"tolerance": 1e-6}, "same (apart by 1e-07)"),
        ((0.5, 0.6), {"tolerance": 1e-6}, "differ by 1e-01"),
        ((1e-7, 3.0), {"tolerance": 1e-6, "better": "lower"}, "ours"),
        ((None, None), {}, "-"),
    ],
)
def test_verdicts(rows, figures, more, said):
    assert rows.verdict(one(rows, *figures, **more)) == said


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([0.6, 0.7, 0.8], "ours (+0.1000 ± 0.0000)"),
        ([0.8, 0.9, 1.0], "theirs (-0.1000 ± 0.0000)"),
        ([0.6, 0.9, 0.9], "neither (+0.0000 ± 0.0577)"),
    ],
)
def test_pairs_of_networks_are_compared_with_their_error(rows, theirs, said):
    head = ("alignment", "x", "1", "case", "accuracy")
    assert rows.verdict(rows.paired(*head, [0.7, 0.8, 0.9], theirs, "")) == said
