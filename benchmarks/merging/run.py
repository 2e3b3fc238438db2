"""CIFAR-10, 10,000 labelled images: one network of four independent members.

Command: .venv/bin/python benchmarks/merging/run.py CIFAR10 OUT
CIFAR10: the data, in any layout that --data takes. OUT: a folder for zoos and caches.
About 25 minutes for the zoos and as long for the rest, one core.
Expect: soup at chance, aligned soup and repair far below one member, layer-wise
regression within a point of the mean member without any gradient step.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.methods import Supervised
from metaensemble.report import Report, Study, write_report
from metaensemble.report.page import write_page
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.teachers import load_ensemble
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.teach import Knowledge, teach_members

HERE = Path(__file__).parent
ARCHITECTURE = "convnet,width=32"
MEMBERS = Supervised(epochs=30, learning_rate=0.1)
STARTS = ("scratch", "best_member", "regression_merge")
BUDGETS = (0.1, 0.5, 2.0)
"""Epochs of distillation, over labelled and unlabelled images: 49,000."""
RATES = {0.1: 0.015, 0.5: 0.05, 2.0: 0.05}
"""By budget, for the starts that are trained; chosen on validation (LOG.md)."""
METHODS: list[MethodUnion] = [
    make_method("best_member"),
    make_method("soup"),
    make_method("aligned_soup"),
    make_method("repair"),
    make_method("regression_merge"),
    *(
        make_method(
            "kd",
            start=start,
            epochs=epochs,
            learning_rate=0.05 if start == "scratch" else RATES[epochs],
        )
        for epochs in BUDGETS
        for start in STARTS
    ),
]
COMMAND = "python benchmarks/merging/run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10")
    parser.add_argument("work", type=Path, help="folder of zoos and caches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 10, 20])
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the other studies
    rows: list[Report] = []
    for seed in options.seeds:
        rows += fused(options.data, options.work, seed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_report(options.out / "report.json", Study(study="merging", rows=rows))
    (options.out / "table.md").write_text(markdown_table(rows), encoding="utf-8")
    write_page(options.work / "page.html", "merging", rows)
    Console().print(comparison_table(rows))


def fused(spec: str, work: Path, seed: int) -> list[Report]:
    """Return the reports of all methods on the zoo of one seed."""
    zoo = work / f"zoo{seed}"
    data = load_data(spec, limit_train=10_000, unlabelled=True)
    with RunLog() as log, tempfile.TemporaryDirectory() as name:
        running = RunOptions(seed=seed, device="cpu", cache=work / "cache")
        session = open_session(running, data, Path(name), log)
        if not zoo.exists():
            taught(session, zoo)
        ensemble = load_ensemble([zoo], data=data)
        rows = []
        for method in METHODS:
            student = fuse_students(session, ensemble, method)[-1]
            row = measure_student(
                session, ensemble, student, command=COMMAND, method=method
            ).report
            session.clear_checkpoints()
            rows.append(row)
            test = row.student.test
            text = f"{test.accuracy:.4f}, KL {row.fidelity.kl:.4f}"
            seconds = student.train_seconds
            log.say(f"{seed} {method}: {text}, {seconds:.0f} s")
        return rows


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
