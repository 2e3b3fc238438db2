"""Every table of figures in a document stands in a file that a command wrote."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*/README.md"),
    ]
)
MADE = "\n".join(
    path.read_text(encoding="utf-8")
    for name in ("table.md", "summary.md", "ablations.md", "listening.md")
    for path in sorted(ROOT.glob(f"benchmarks/**/{name}"))
)
MARKED = re.compile(r"<!-- table (\S+) -->.*?<!-- end \1 -->", re.S)
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
FIGURE = re.compile(r"[+-]?\d[\d,.]*(?: ± [\d.]+)?(?: ?(?:%|[kMG]|ms|s|MB|GB|points))?")


def unbacked(text: str) -> list[str]:
    """Return lines with two figures or more, outside markers, that no file holds."""
    lines = []
    for table in TABLE.findall(MARKED.sub("", text)):
        for line in table.splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            figures = sum(bool(FIGURE.fullmatch(cell)) for cell in cells[1:])
            if figures >= 2 and line not in MADE:
                lines.append(line)
    return lines


def test_what_is_looked_for():
    table = "| a | b | c |\n|---|---|---|\n| x | 1.5 ± .2 | 7 |\n"
    assert unbacked(table.replace("± .2", "± 0.2")) == ["| x | 1.5 ± 0.2 | 7 |"]
    assert not unbacked("| a | b | c |\n|---|---|---|\n| x | `1` | words 7 |\n")
    assert not unbacked(f"<!-- table a -->\n{table}<!-- end a -->\n")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_table_is_backed(path: Path):
    assert not unbacked(path.read_text(encoding="utf-8"))


def test_the_overview_is_up_to_date(script):
    overview = script(ROOT / "benchmarks" / "overview.py")
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert page == overview.page()
    for entry in overview.ENTRIES:
        assert (ROOT / "benchmarks" / entry.name / "run.py").exists() or entry.commands


def test_published_differences_are_those_of_the_reports(script):
    folder = ROOT / "benchmarks" / "published"
    study = script(folder / "run.py")
    rows = list(study.compared())
    assert len(rows) == len(study.CLAIMS)
    assert study.table(rows) == (folder / "table.md").read_text(encoding="utf-8")
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == study.filled(page, rows)


def test_a_published_difference_is_seen_where_its_interval_says_so(script):
    study = script(ROOT / "benchmarks" / "published" / "run.py")
    seen, not_shown, opposite = study.VERDICTS
    assert study.verdict(1, 2.0, 1.9) == study.verdict(-1, -2.0, 1.9) == seen
    assert study.verdict(1, 2.0, 2.1) == not_shown
    assert study.verdict(-1, 2.0, 1.9) == study.verdict(0, 2.0, 1.9) == opposite
    assert study.verdict(0, 2.0, 2.1) == seen


def test_the_cpu_tier_is_under_three_hours(script):
    run = script(ROOT / "benchmarks" / "all.py")
    entries = [entry for entry in run.ENTRIES if entry.commands]
    assert run.planned(entries, 2) <= 180


def test_agreement_is_by_errors_and_by_bits(script):
    agreement = script(ROOT / "benchmarks" / "agreement.py")
    old = [{"method": "a", "seed": s, "accuracy": 0.5 + s / 100} for s in range(4)]
    (same,) = agreement.comparisons("x", old, old[:2])
    assert same.equal
    assert same.agrees
    near = [{**row, "accuracy": row["accuracy"] + 0.01} for row in old]
    far = [{**row, "accuracy": row["accuracy"] + 0.05} for row in old]
    (within,) = agreement.comparisons("x", old, near)
    assert within.agrees
    assert not within.equal
    (outside,) = agreement.comparisons("x", old, far)
    assert not outside.agrees
    assert "was 0.515, is 0.565" in agreement.table([outside])
    assert agreement.good([within] * 30 + [outside])
    assert not agreement.good([within] * 10 + [outside] * 3)
    other = [{**row, "method": "b"} for row in old]
    assert agreement.comparisons("x", old, other) == []


def test_every_command_of_the_tier_names_its_script_and_what_that_requires(script):
    plan = script(ROOT / "benchmarks" / "plan.py")
    commands = [(entry, line) for entry in plan.ENTRIES for line in entry.commands]
    assert commands
    for entry, line in commands:
        words = line.split()
        path = ROOT / "benchmarks" / words[words[0] == "{python}"]
        assert path.is_file(), line
        text = path.read_text(encoding="utf-8")
        flags = re.findall(r'add_argument\("(--[a-z-]+)"[^\n]*required=True', text)
        places = len(re.findall(r'add_argument\("[a-z]', text))
        assert all(flag in words for flag in flags), entry.name
        given = [word for word in words if word in ("{data}", "{work}")]
        assert len(given) >= places, entry.name


def test_studies_begin_anew_once_and_leave_the_committed_alone(
    script, tmp_path, monkeypatch, capsys
):
    run = script(ROOT / "benchmarks" / "all.py")
    here = tmp_path / "benchmarks"
    for name in ("first", "second"):
        (here / name).mkdir(parents=True)
        (here / name / "report.json").write_text('{"rows": [{"accuracy": 0.5}]}')
    monkeypatch.setattr(run, "HERE", here)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    line = (
        "test ! -e first/report.json && test -e second/report.json && "
        "cp second/report.json first/report.json"
    )
    entry = run.Entry("first", 1, (line,))
    broken = run.Entry("second", 1, ("echo no && false",))
    work = tmp_path / "work"
    work.mkdir()
    run.copied(work)
    assert run.run([entry, broken], work, "", 1) == ["second"]
    assert (work / "logs" / "second.log").read_text().splitlines()[-1] == "no"
    assert run.finished(entry, work, "")  # not made again: it would fail
    assert "first is done already" in capsys.readouterr().out
    assert (here / "second" / "report.json").exists()
    assert not (work / "benchmarks" / "second" / "report.json").exists()
