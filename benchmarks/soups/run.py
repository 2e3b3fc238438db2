"""Soups of eight fine-tunes of one start, over three draws of everything.

Command: .venv/bin/python benchmarks/soups/run.py CIFAR10 WORK   (about 20 minutes; one
core). CIFAR10: the data, in any layout that --data takes. WORK: a folder for members,
which are used again if they are there.
Expect: the soups recover more than half of the headroom, the best member little of it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.merging import BestMember, GreedySoup, LearnedSoup, Merger, Soup
from metaensemble.methods import Supervised
from metaensemble.report import Report, Study, write_report
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.teachers import Ensemble, Member, load_member
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.reporting import measure_student, save_student
from metaensemble.workflows.students import merge_student
from metaensemble.workflows.teach import Knowledge, teach_member

HERE = Path(__file__).parent
ARCHITECTURE = "convnet,width=32"
START = Supervised(epochs=10, learning_rate=0.1)
"""The common start, on half of the labelled images."""
RATES = (0.05, 0.1, 0.2)
"""Of the fine-tunes, in turn."""
EPOCHS = 10
"""Of each fine-tune, on its own fifth of the labelled images."""
MEMBERS = 8
METHODS: tuple[Merger, ...] = (
    BestMember(),
    Soup(),
    GreedySoup(),
    LearnedSoup(),
    LearnedSoup(target="labels"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--teach-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Report] = []
    for draw in range(options.draws):
        with RunLog() as log:
            session = open_draw(options.cifar10, options.work, draw, log)
            members = Ensemble(tuple(teach(session, options.work / f"draw-{draw}")))
            if not options.teach_only:
                rows += fused(session, members)
    if options.teach_only:
        return
    write_report(HERE / "report.json", Study(study="soups", rows=rows))
    (HERE / "table.md").write_text(markdown_table(rows), encoding="utf-8")
    Console().print(comparison_table(rows))


def open_draw(cifar10: str, work: Path, draw: int, log: RunLog) -> Session:
    """Return the session of a draw: another split, other members, other seeds."""
    data = load_data(
        cifar10, limit_train=10_000, seed=draw, augment="flip", unlabelled=False
    )
    folder = work / f"draw-{draw}"
    folder.mkdir(parents=True, exist_ok=True)
    running = RunOptions(seed=draw, device="cpu", cache=work / "cache")
    return open_session(running, data, folder, log)


def teach(session: Session, folder: Path) -> Iterator[Member]:
    """Yield the members, fine-tuned from one start."""
    first = session.seed * 1000
    path = folder / "start.safetensors"
    start = (
        load_member(path)
        if path.exists()
        else teach_member(
            session.reseeded(first + 999),
            path,
            architecture=ARCHITECTURE,
            method=START,
            knowledge=Knowledge(subset=0.5),
        )
    )
    for number in range(MEMBERS):
        path = folder / f"member-{number}.safetensors"
        if path.exists():
            yield load_member(path)
            continue
        rate = RATES[number % len(RATES)]
        yield teach_member(
            session.reseeded(first + number),
            path,
            architecture=ARCHITECTURE,
            method=Supervised(epochs=EPOCHS, learning_rate=rate),
            start=start,
            knowledge=Knowledge(subset=0.2),
        )


def fused(session: Session, members: Ensemble) -> Iterator[Report]:
    """Yield the report of each method's student."""
    assert session.folder is not None
    for number, method in enumerate(METHODS):
        student = merge_student(session, members, method)
        path = session.folder / f"student-{number}.safetensors"
        save_student(path, members, student, method)
        yield measure_student(
            session,
            members,
            student,
            command="python benchmarks/soups/run.py",
            method=method,
            path=path,
        ).report


if __name__ == "__main__":
    main()
