"""Images per second of distillation: cached teachers against a plain PyTorch loop.

Command: .venv/bin/python benchmarks/distillation_speed/run.py
Writes report.json and table.md. About 3 minutes; the machine should be idle.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.files import write_json, write_text

HERE = Path(__file__).parent
CASES = (
    ("convnet,width=32", 1),
    ("convnet,width=32", 4),
    ("convnet,width=32", 8),
)
"""Architecture of student and teachers, and how many teachers."""
REPEATS = 2
"""Of which the fastest counts, for either way."""
EPOCHS, VIEWS = 20, 8
"""Of the training over which the filling of the cache is spread in the last column."""


def main() -> None:
    rows = [row(architecture, teachers) for architecture, teachers in CASES]
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": 2,
    }
    document = {
        "schema": 1,
        "study": "distillation_speed",
        "environment": environment,
        "rows": rows,
    }
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))


def row(architecture: str, teachers: int) -> dict[str, Any]:
    """Return the measurements of one case, the fastest run of each way."""
    cached = best([("cached", 0)] * REPEATS, architecture, teachers)
    ways = [("plain", 0), ("plain", 2)] * REPEATS  # with and without worker processes
    plain = best(ways, architecture, teachers)
    rate = cached["images_per_second"]
    # the teachers see each of VIEWS copies once, in EPOCHS epochs
    teaching = cached["teacher_seconds_per_image"] * teachers * min(VIEWS, EPOCHS)
    filled = 1 / (1 / rate + teaching / EPOCHS)
    found = {
        "architecture": architecture,
        "teachers": teachers,
        "cached": cached,
        "plain": plain,
        "faster": rate / plain["images_per_second"],
        "faster_with_filling": filled / plain["images_per_second"],
    }
    print(json.dumps(found), flush=True)
    return found


def best(
    ways: list[tuple[str, int]], architecture: str, teachers: int
) -> dict[str, Any]:
    runs = [measured(way, architecture, teachers, workers) for way, workers in ways]
    return max(runs, key=lambda run: run["images_per_second"])


def measured(way: str, architecture: str, teachers: int, workers: int) -> Any:
    command = [sys.executable, str(HERE / "measure.py"), way, architecture]
    command += [str(teachers), "--workers", str(workers)]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| student and teachers | N | cached, images/s | plain loop, images/s | faster "
        f"by | ... with filling the cache ({EPOCHS} epochs, {VIEWS} views) | peak, MB "
        "(cached) | peak, MB (plain) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cached, plain = r["cached"], r["plain"]
        lines.append(
            f"| {r['architecture']} | {r['teachers']} "
            f"| {cached['images_per_second']:,.0f} "
            f"| {plain['images_per_second']:,.0f} | {r['faster']:.1f} "
            f"| {r['faster_with_filling']:.1f} | {cached['peak_memory_mb']:.0f} "
            f"| {plain['peak_memory_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
