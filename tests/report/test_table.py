from collections.abc import Callable

import pytest
from rich.console import Console

from metaensemble.report import Cost, Report
from metaensemble.report.aggregate import aggregate, lines
from metaensemble.report.table import comparison_table, markdown_table

Make = Callable[..., Report]


def shown(reports: list[Report], width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(reports, width))
    return capture.get()


def numbers(text: str, label: str) -> list[str]:
    row = next(r for r in text.splitlines() if r.strip().startswith(label))
    return row.strip().removeprefix(label).split()


def test_the_table_shows_fractions_as_percent(make: Make):
    text = shown([make(0.96)], 140)
    assert numbers(text, "kd")[:5] == ["96.0", "75.0", "97.0", "0.041", "3.0"]
    assert numbers(text, "ensemble")[:3] == ["98.0", "100.0", "100.0"]
    assert numbers(text, "best member")[:3] == ["92.0", "25.0", "-"]
    assert numbers(text, "mean member")[:3] == ["90.0", "0.0", "-"]
    costs = ["0.21", "12.5", "60", "k", "26.1", "k", "25.9", "k"]
    assert numbers(text, "kd")[5:] == costs


def test_markdown_holds_the_same_numbers(make: Make):
    rows = markdown_table([make(0.96)]).splitlines()
    kd = [cell.strip() for cell in rows[5].strip("|").split("|")]
    table = shown([make(0.96)], 140)
    assert " ".join(kd) == " ".join(["kd", *numbers(table, "kd")])


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_shows_fewer_columns_but_whole_numbers(
    make: Make, width: int
):
    reports = [make(0.96, seed=s, name="weightformer", stage="tuned") for s in (0, 1)]
    text = shown(reports, width)
    assert max(len(row) for row in text.splitlines()) <= width
    assert "…" not in text
    assert numbers(text, "weightformer, tuned")[0] == "96.0±0.0"
    assert ("Not shown here" in text) == (width < 140)


def test_seeds_are_aggregated_to_mean_and_standard_error(make: Make):
    line = aggregate([make(a, seed=i) for i, a in enumerate((0.94, 0.95, 0.96))])[0]
    assert line.count == 3
    accuracy = line.values["accuracy"]
    assert accuracy.mean == pytest.approx(0.95)
    assert accuracy.error == pytest.approx(0.01 / 3**0.5)
    assert line.values["recovered"].mean == pytest.approx(0.05 / 0.08)


def test_one_report_has_no_standard_error(make: Make):
    assert aggregate([make()])[0].values["accuracy"].error is None


def test_other_hyperparameters_stage_or_regime_are_other_lines(make: Make):
    reports = [
        make(0.91),
        make(0.92, method={"name": "kd", "temperature": 1.0}),
        make(0.93, name="weightformer", stage="predicted"),
        make(0.94, name="weightformer", stage="tuned"),
        make(0.95, regime="one-start"),
    ]
    found = [(line.setting[-9:], line.label) for line in aggregate(reports)]
    assert found == [
        (" teachers", "weightformer, tuned"),
        (" teachers", "weightformer, predicted"),
        (" teachers", "kd (temperature=1.0)"),
        (" teachers", "kd (temperature=4.0)"),
        ("one-start", "kd"),
    ]
    assert "one-start" in shown(reports, 100)
    assert "one-start" in markdown_table(reports)


def test_a_set_of_teachers_counts_once_among_the_references(make: Make):
    reports = [make(teachers=t, seed=s) for t in "ab" for s in range(3)]
    counts = {line.kind: line.count for line in lines(reports)}
    assert counts == {
        "ensemble": 2,
        "best member": 2,
        "mean member": 2,
        "method": 6,
    }


def test_a_mean_over_some_of_the_runs_says_so(make: Make):
    reports = [make(seed=0), make(seed=1, headroom=without_headroom())]
    assert "75.0 (1 of 2)" in markdown_table(reports)


def without_headroom() -> dict[str, float | None]:
    return {"ensemble_minus_mean_teacher": 0.0, "recovered": None}


def test_unknown_costs_leave_their_columns_out(make: Make):
    text = markdown_table([make(cost=Cost())])
    assert "latency" not in text
    assert "MACs" not in text


def test_names_cannot_break_the_tables(hostile: Report):
    rows = markdown_table([hostile]).splitlines()
    kd = next(row for row in rows if "script" in row)
    assert r"\|\`\*\[" in kd
    assert r"\<script" in kd
    assert "alert(1)" in shown([hostile], 200)
