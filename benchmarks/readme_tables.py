"""Writes the tables of README.md from the reports of the studies.

Command: .venv/bin/python benchmarks/readme_tables.py
A test checks that README.md is what this writes.
"""

from pathlib import Path

from metaensemble.report import Report, read_reports
from metaensemble.report.table import markdown_table

ROOT = Path(__file__).parents[1]
COLUMNS = (
    "accuracy",
    "recovered",
    "agreement",
    "nll",
    "ece",
    "latency_ms",
    "train_images",
)
"""What fits a README."""


def digits(regime: str) -> list[Report]:
    rows = read_reports(ROOT / "benchmarks" / "digits" / "report.json")
    heads = (None, "residual")  # the others are in the study's own table
    return [r for r in rows if r.regime == regime and r.method.get("head") in heads]


def study(name: str) -> list[Report]:
    return read_reports(ROOT / "benchmarks" / name / "report.json")


def table(rows: list[Report]) -> str:
    return markdown_table(rows, COLUMNS)


def summary(regime: str) -> str:
    folder = ROOT / "benchmarks" / "weightformer_small" / regime
    return (folder / "summary.md").read_text(encoding="utf-8")


TABLES = {
    "weightformer-one-start": lambda: summary("one-start"),
    "weightformer-unequal": lambda: summary("unequal"),
    "weightformer-independent": lambda: summary("independent"),
    "digits-one-start": lambda: table(digits("one-start")),
    "digits-independent": lambda: table(digits("independent")),
    "soups": lambda: table(study("soups")),
    "merging": lambda: table(study("merging")),
    "cifar10-small": lambda: table(study("cifar10_small")),
}


def filled(text: str) -> str:
    """Return `text` with every table between its markers made anew."""
    for name, text_of in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
        if begin not in text:
            continue
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        text = head + begin + text_of() + end + tail
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
