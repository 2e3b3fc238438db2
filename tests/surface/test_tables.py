"""Every table of figures is what its study's report says."""

import json
from pathlib import Path

import pytest

from metaensemble.report import read_reports
from metaensemble.report.table import markdown_table

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in ROOT.glob("benchmarks/*/report.json"))


def test_the_readme_shows_the_reports(script):
    tables = script(ROOT / "benchmarks" / "readme_tables.py")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in tables.TABLES:
        assert f"<!-- table {name} -->" in text
    assert text == tables.filled(text)


def test_the_digits_table_is_the_report():
    folder = ROOT / "benchmarks" / "digits"
    rows = read_reports(folder)
    text = (folder / "table.md").read_text(encoding="utf-8")
    for regime in ("one-start", "independent"):
        assert markdown_table([row for row in rows if row.regime == regime]) in text


@pytest.mark.parametrize("regime", ["one-start", "unequal", "independent"])
def test_the_weightformer_tables_are_the_reports(regime: str, script):
    folder = ROOT / "benchmarks" / "weightformer_small"
    tables = script(folder / "summary.py")
    rows = read_reports(folder / regime)
    text = (folder / regime / "summary.md").read_text(encoding="utf-8")
    assert text == tables.summary(rows)
    assert markdown_table(rows) == (folder / regime / "table.md").read_text("utf-8")


def finished(*names: str) -> list[str]:
    return [study.name for study in STUDIES if study.name in names]


@pytest.mark.parametrize("name", finished("distillation_small", "merging", "soups"))
def test_the_tables_of_methods_are_the_reports(name: str, script):
    folder = ROOT / "benchmarks" / name
    table = (folder / "table.md").read_text(encoding="utf-8")
    columns = None
    if (folder / "rows.py").exists():
        columns = script(folder / "rows.py").COLUMNS
    assert table == markdown_table(read_reports(folder), columns)


@pytest.mark.parametrize("name", finished("distillation_speed", "online_small"))
def test_the_tables_of_measurements_are_the_reports(name: str, script):
    folder = ROOT / "benchmarks" / name
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table == script(folder / "run.py").table(report["rows"])


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_every_study_says_what_it_is(study: Path):
    readme = (study / "README.md").read_text(encoding="utf-8")
    for word in ("**Question.**", "**Setting.**", "**Command.**", "**Takeaway.**"):
        assert word in readme
    text = (study / "report.json").read_text(encoding="utf-8")
    report = json.loads(text)
    assert report["study"] == study.name
    assert report["rows"]
    if "student" in report["rows"][0]:  # the others measure something else
        assert len(read_reports(study)) == len(report["rows"])
