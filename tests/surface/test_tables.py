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


@pytest.mark.parametrize(
    "name", finished("auto", "distillation_speed", "online_small", "running")
)
def test_the_tables_of_measurements_are_the_reports(name: str, script):
    folder = ROOT / "benchmarks" / name
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table == script(folder / "run.py").table(report["rows"])


@pytest.mark.parametrize("name", ["profile", "scaling"])
def test_the_tables_of_time_and_size_are_the_reports(name: str, script):
    folder = ROOT / "benchmarks" / name
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table == script(folder / "run.py").table(report["rows"])


def test_the_page_on_scaling_is_what_the_reports_say(script):
    project = script(ROOT / "benchmarks" / "scaling" / "project.py")
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert text == project.filled(text)


def test_the_projected_network_costs_what_the_measured_one_does(script):
    project = script(ROOT / "benchmarks" / "scaling" / "project.py")
    base = project.vit(width=768, depth=12, patch=32, side=224, classes=1000)
    assert base.parameters == 88_224_232  # torchvision's ViT-B/32
    assert project.VIT_L.parameters == 304_326_632  # and ViT-L/16
    report = json.loads((ROOT / "benchmarks/prediction/report.json").read_text("utf-8"))
    (row,) = (row for row in report["rows"] if row["case"] == "vit_b_32 N=4")
    assert project.generator_adds(base, 4) == row["multiply_adds"]


def test_a_fit_finds_the_exponent_and_the_cost_of_one_more(script):
    curves = script(ROOT / "benchmarks" / "scaling" / "run.py")
    sizes = [1.0, 2.0, 4.0, 8.0]
    slope, error = curves.exponent(sizes, [3 * x**1.5 for x in sizes])
    assert (slope, error) == pytest.approx((1.5, 0), abs=1e-9)
    assert curves.line(sizes, [2 * x + 5 for x in sizes]) == pytest.approx((2, 5))


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
