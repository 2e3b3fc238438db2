"""This project beside its rivals: same inputs, same machine, same threads, one run.

Command: .venv/bin/python benchmarks/rivals/run.py [--work DIR] [--only QUESTION ...]

Installs every rival into an environment of its own below DIR, never into this
project's, and writes report.json, table.md and the tables of README.md. A question that
is not named keeps the rows it has. `--only linked` measures nothing: it takes over what
benchmarks/alignment and benchmarks/distillation_speed found.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before torch is loaded: the inputs are made, and results judged, in this process.
os.environ["OMP_NUM_THREADS"] = "1"

import alignment
import linked
import losses
import plans
import scores
import soup
import torch
from rig import CannotRunError, Rig
from rows import QUESTIONS, Row, absent, filled, table

from metaensemble.core.files import write_json, write_text

HERE = Path(__file__).parent
THREADS = 1
SCRIPTS = {
    "model soups (mlfoundations/model-soups)": "no package, neither setup.py nor "
    "pyproject.toml: scripts for 72 fine-tunes of CLIP ViT-B/32 on ImageNet, which "
    "are not here; its uniform soup is the mean that mergekit's rows compare",
    "OT fusion (sidak/otfusion)": "no package, neither setup.py nor pyproject.toml: "
    "scripts for networks of its own; its plans are POT's, which are compared",
}
"""What cannot be installed, and why."""


def scripts(rig: Rig) -> Iterator[Row]:
    for name, why in SCRIPTS.items():
        yield absent(name, "-", why)


MAKERS: dict[str, Callable[[Rig], Iterator[Row]]] = {
    "alignment": alignment.rows,
    "linked": linked.rows,
    "soup": soup.rows,
    "scores": scores.rows,
    "plans": plans.rows,
    "losses": losses.rows,
    "absent": scripts,
}


def write(rows: list[Row], environment: dict[str, object]) -> None:
    """Write the report, and the tables made from it."""
    questions, makers = list(QUESTIONS), list(MAKERS)
    order = {
        id(r): (questions.index(r["question"]), makers.index(r["asked"])) for r in rows
    }
    rows = sorted(rows, key=lambda each: order[id(each)])
    report = {"schema": 1, "study": "rivals", "environment": environment, "rows": rows}
    write_json(HERE / "report.json", report)
    write_text(HERE / "table.md", table(rows))
    readme = HERE / "README.md"
    write_text(readme, filled(readme.read_text(encoding="utf-8"), rows))


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """Yield the folder of environments and inputs, a temporary one by default."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    report = HERE / "report.json"
    known = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    rows: list[Row] = known.get("rows", [])
    environment = {
        **known.get("environment", {}),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": THREADS,
        "cores": os.cpu_count(),
    }
    runs = environment.setdefault("runs", {})
    with place(options.work) as work:
        rig = Rig(work, THREADS)
        environment["metaensemble"] = rig.ours.version
        for question in options.only:
            load, started, before = os.getloadavg()[0], time.monotonic(), rig.installing
            made = []
            try:
                for each in MAKERS[question](rig):
                    print(json.dumps(each), flush=True)
                    made.append({**each, "asked": question})
            except CannotRunError as error:
                sys.exit(f"{question}: {error}")
            installing = rig.installing - before
            runs[question] = {
                "load_average_before": round(load, 1),
                "seconds": round(time.monotonic() - started - installing),
                "installing_seconds": round(installing),
            }
            rows = [each for each in rows if each["asked"] != question] + made
            write(rows, environment)


if __name__ == "__main__":
    main()
