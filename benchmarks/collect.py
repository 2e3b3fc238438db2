"""Gathers the reports of runs into a study's report.json.

Command: .venv/bin/python benchmarks/collect.py NAME RUN... (writes benchmarks/NAME/)
"""

import argparse
from pathlib import Path

from metaensemble.report import Study, read_report, write_report

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    rows = [read_report(run) for run in options.runs]
    folder = HERE / options.study
    for run, row in zip(options.runs, rows, strict=True):
        write_report(folder / f"{run.name}.json", row)
    write_report(folder / "report.json", Study(study=options.study, rows=rows))


if __name__ == "__main__":
    main()
