"""CIFAR-10, 10,000 labelled images: all distillation methods at one member's budget.

Command: .venv/bin/python benchmarks/distillation_small/run.py CIFAR10 WORK
CIFAR10: the data, in any layout that --data takes. WORK: a folder of zoos, caches and
finished rows, which are kept: several processes may share it, each with its own --seeds
or --only; the last one, given --collect, writes report.json and table.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from rows import BUDGET, COLUMNS, IMAGES, ROWS

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.methods import Supervised
from metaensemble.report import Study, read_report, write_report
from metaensemble.report.table import markdown_table
from metaensemble.teachers import load_ensemble
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.teach import Knowledge, teach_members

HERE = Path(__file__).parent
ARCHITECTURE = "convnet,width=24"
SEEDS = (0, 10, 20)
MEMBERS = Supervised(epochs=20, learning_rate=0.1)
COMMAND = "python benchmarks/distillation_small/run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10")
    parser.add_argument("work", type=Path, help="folder of zoos, caches and rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--collect", action="store_true", help="write the report")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the other studies
    if not options.collect:
        for seed in options.seeds:
            fused(options.data, options.work, seed, options.only)
        return
    paths = [row_path(options.work, s, name) for name in ROWS for s in SEEDS]
    rows = [read_report(path) for path in paths if path.exists()]
    write_report(HERE / "report.json", Study(study="distillation_small", rows=rows))
    text = markdown_table(rows, COLUMNS)
    (HERE / "table.md").write_text(text, encoding="utf-8")


def fused(spec: str, work: Path, seed: int, names: list[str]) -> None:
    """Write the reports of the named rows on the zoo of one seed."""
    zoo = work / f"zoo{seed}"
    data = load_data(spec, limit_train=10_000, augment="flip", unlabelled=True)
    with RunLog(quiet=True) as log, tempfile.TemporaryDirectory() as name:
        running = RunOptions(seed=seed, device="cpu", cache=work / "cache")
        session = open_session(running, data, Path(name), log)
        if not zoo.exists():
            taught(session, zoo)
        ensemble = load_ensemble([zoo], data=data)
        for row in names:
            path = row_path(work, seed, row)
            if path.exists():
                continue
            method = make_method(**settings(row))
            student = fuse_students(session, ensemble, method)[-1]
            report = measure_student(
                session, ensemble, student, command=COMMAND, method=method
            ).report
            session.clear_checkpoints()
            path.parent.mkdir(exist_ok=True)
            write_report(path, report)
            told(seed, row, report, student.train_seconds)


def told(seed: int, row: str, report: Any, seconds: float) -> None:
    """Print validation figures: test figures are not looked at before the end."""
    validation = report.student.validation
    figures = f"{validation.accuracy:.4f}, NLL {validation.nll:.4f}"
    images = f"{report.cost.train_images} images, {seconds:.0f} s"
    ece = f"ECE {validation.ece:.4f}"
    print(f"{seed} {row}: validation {figures}, {ece}, {images}", flush=True)


def settings(row: str) -> dict[str, Any]:
    """Return a row's method and hyperparameters, its budget in epochs filled in."""
    chosen = dict(ROWS[row])
    trained = chosen["name"] != "best_member"
    return {"epochs": BUDGET / IMAGES, "views": 1, **chosen} if trained else chosen


def row_path(work: Path, seed: int, row: str) -> Path:
    return work / "rows" / f"{seed}-{row}.json"


def taught(session: Session, zoo: Path) -> None:
    """Train the four members of a zoo, each on its own half of the labelled images."""
    zoo.mkdir(parents=True)
    teach_members(
        session,
        zoo,
        architecture=ARCHITECTURE,
        members=4,
        method=MEMBERS,
        knowledge=Knowledge(subset=0.5),
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
