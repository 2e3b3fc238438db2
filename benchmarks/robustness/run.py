r"""Damages a small valid file of every reader, over and over, and reads what is left.

Command: .venv/bin/python benchmarks/robustness/run.py [--inputs 200] [--first 0] \
    [--out FOLDER]

Writes report.json and table.md; prints every fault.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from metaensemble.core.files import write_json, write_text

HERE = Path(__file__).parent
HARNESS = HERE.parents[1] / "tests" / "robustness" / "fuzz.py"
COLUMNS = {
    "reader": "reader",
    "inputs": "inputs",
    "clear_errors": "clear errors",
    "correct_reads": "correct reads",
    "faults": "faults",
    "seconds": "seconds",
    "peak_memory_mb": "peak, MB",
}
"""Key of a row: its heading."""


def harness() -> ModuleType:
    """The module beside the tests that runs the reads."""
    spec = importlib.util.spec_from_file_location("fuzz", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row_of(reader: str, reads: list[dict[str, Any]]) -> dict[str, Any]:
    """Count how the reads of one reader ended."""
    ends = [read["outcome"] for read in reads]
    return {
        "reader": reader,
        "inputs": len(reads),
        "clear_errors": ends.count("refused"),
        "correct_reads": ends.count("read"),
        "faults": ends.count("fault"),
        "seconds": round(sum(read["seconds"] for read in reads), 2),
        "peak_memory_mb": round(max(read["memory_mb"] for read in reads), 1),
    }


def rows_of(reads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per reader; the hand-made cases, of all readers, are the last."""
    own: dict[str, list[dict[str, Any]]] = {}
    for read in reads:
        own.setdefault(read["reader"], []).append(read)
    return [row_of(reader, some) for reader, some in own.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with their sum."""
    total = {key: sum(row[key] for row in rows) for key in list(COLUMNS)[1:6]}
    total["seconds"] = round(total["seconds"], 2)
    peak = max(row["peak_memory_mb"] for row in rows)
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for row in [*rows, {"reader": "all", **total, "peak_memory_mb": peak}]:
        lines.append(f"| {' | '.join(str(row[key]) for key in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200, help="damages per reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    fuzz = harness()
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(reader, options.first, options.inputs) for reader in fuzz.READERS]
        tasks.append(("hostile", 0, fuzz.HOSTILE))
        reads = fuzz.run(Path(folder), tasks)
    for read in reads:
        if read["outcome"] == "fault":
            print(f"{read['reader']} {read['number']}: {read['message']}", flush=True)
    rows = rows_of(reads)
    report = {"schema": 1, "study": "robustness", "rows": rows}
    write_json(options.out / "report.json", report)
    write_text(options.out / "table.md", table(rows))


if __name__ == "__main__":
    main()
