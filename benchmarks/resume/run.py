"""Kills commands at fifty random moments and compares what their repetition makes.

Command: .venv/bin/python benchmarks/resume/run.py --work /tmp/resume [--draws 3 7]

Writes report.json, after every draw, and table.md. Draws that the report holds already
are kept, unless --draws names them; an interrupted study is continued by the same
command.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from metaensemble.core.files import write_json, write_text  # noqa: E402
from tests.resume.drawing import outcomes, planned  # noqa: E402

HEADER = (
    "| command | processes | draws | killed twice | one of two killed | resumed "
    "inside a training | equal |\n|---|---|---|---|---|---|---|\n"
)


def table(rows: list[dict]) -> str:
    """Return the table of a report's rows: a line for each command and number."""
    lines = []
    keys = {(row["command"], row["processes"]): None for row in rows}
    for name, processes in sorted(keys):
        of = [r for r in rows if (r["command"], r["processes"]) == (name, processes)]
        lines.append(_line(name, str(processes), of, processes > 1))
    lines.append(_line("**all**", "", rows, True))
    return HEADER + "".join(lines)


def _line(name: str, processes: str, rows: list[dict], several: bool) -> str:
    twice = sum(len(row["kills"]) > 1 for row in rows)
    one = sum(
        any(len(kill["ranks"]) < row["processes"] for kill in row["kills"])
        for row in rows
    )
    taken_up = sum(bool(row["resumed"]) for row in rows)
    equal = sum(row["equal"] for row in rows)
    cells = [name, processes, len(rows), twice, one if several else "", taken_up, equal]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="*", help="only these, again")
    options = parser.parse_args()
    path = HERE / "report.json"
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["draw"]: row for row in found}
    draws = [
        draw
        for draw in planned()
        if (draw.number in options.draws if options.draws else draw.number not in rows)
    ]
    for row in outcomes(draws, options.work):
        rows[row["draw"]] = row
        ordered = [rows[number] for number in sorted(rows)]
        write_json(path, {"schema": 1, "study": "resume", "rows": ordered})
        write_text(HERE / "table.md", table(ordered))
        what = f"{row['draw']:2} {row['command']} x{row['processes']}"
        fractions = [round(kill["fraction"], 2) for kill in row["kills"]]
        result = row["wrong"] or "equal"
        told = f"{what}: killed at {fractions}, resumed {row['resumed']}: {result}"
        print(told, flush=True)


if __name__ == "__main__":
    main()
