"""Merging over depth: benchmarks/mlp_depth/report.json.

Command: .venv/bin/python benchmarks/mlp_depth/run.py        (3 minutes of one core)
Expect: the plain mean falls to chance, the aligned mean falls with depth, the repaired
one stays within a few points of a member (arXiv 2211.08403, MNIST).
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.merging import AlignedSoup, Repair, Soup
from metaensemble.methods import Supervised
from metaensemble.report import Report, Study, write_report
from metaensemble.teachers import Ensemble
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.registry import MethodUnion
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.teach import teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/mlp_depth/run.py"
DEPTHS = (1, 2, 3, 5, 10)
WIDTH = 128
TEACHING = Supervised(epochs=60, batch_size=64, learning_rate=0.1, weight_decay=5e-3)
METHODS: dict[str, MethodUnion] = {
    "vanilla": Soup(),
    "aligned": AlignedSoup(),
    "aligned + REPAIR": Repair(),
    "matched by activations + REPAIR": Repair(matching="activations"),
}

PUBLISHED = {1: (1.3, 0.6), 2: (1.9, 1.2), 5: (4.6, 2.2), 10: (16.9, 2.8)}
"""Points lost on MNIST in the paper of REPAIR, aligned and repaired, by depth."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {
        depth: [merged(depth, pair) for pair in range(options.pairs)]
        for depth in DEPTHS
    }
    options.out.mkdir(parents=True, exist_ok=True)
    reports = [row for pairs in rows.values() for pair in pairs for row in pair]
    study = Study(study="mlp_depth", rows=reports)
    write_report(options.out / "report.json", study)
    table = table_of(rows)
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)


def merged(depth: int, pair: int) -> list[Report]:
    """Train two members of one depth; return a report for each way of merging them."""
    data = load_data("digits", validation_fraction=0.2, seed=pair)
    with tempfile.TemporaryDirectory() as name, RunLog(quiet=True) as log:
        folder = Path(name)
        # Members have the seeds seed and seed + 1: no two pairs share one.
        running = RunOptions(seed=2 * pair, device="cpu", cache=folder / "cache")
        session = open_session(running, data, None, log)
        architecture = f"mlp,width={WIDTH},depth={depth}"
        taught = teach_members(
            session,
            folder,
            architecture=architecture,
            members=2,
            method=TEACHING,
            command=COMMAND,
        )
        members = Ensemble(tuple(taught))
        reports = []
        for method in METHODS.values():
            student = fuse_students(session, members, method)[-1]
            report = measure_student(
                session, members, student, command=COMMAND, method=method
            ).report
            teachers = [
                teacher.model_copy(update={"path": Path(teacher.path).name})
                for teacher in report.teachers
            ]
            reports.append(
                report.model_copy(update={"teachers": teachers, "draw": pair})
            )
        return reports


def table_of(rows: dict[int, list[list[Report]]]) -> str:
    """Return the accuracies in Markdown, one line per depth."""
    names = ["hidden layers", "mean member", "ensemble", *METHODS, "REPAIR - aligned"]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---:'] * len(names))} |"]
    order = list(METHODS)
    repaired, aligned = order.index("aligned + REPAIR"), order.index("aligned")
    for depth, pairs in rows.items():
        columns = [
            [pair[0].mean_teacher.test.accuracy for pair in pairs],
            [pair[0].ensemble.test.accuracy for pair in pairs],
        ]
        scores = [[row.student.test.accuracy for row in pair] for pair in pairs]
        columns += [list(column) for column in zip(*scores, strict=True)]
        columns.append([score[repaired] - score[aligned] for score in scores])
        cells = [str(depth), *(_cell(column) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    pairs = len(next(iter(rows.values())))
    legend = f"*Test accuracy in %; ± standard error over {pairs} pairs of members.*"
    return "\n".join([*lines, "", legend, "", *_beside_the_paper(rows)])


def _beside_the_paper(rows: dict[int, list[list[Report]]]) -> list[str]:
    """Return lines: points lost to the mean member, here and in REPAIR's table."""
    lines = [
        "| hidden layers | aligned | aligned, MNIST | REPAIR | REPAIR, MNIST |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    order = list(METHODS)
    for depth, pairs in rows.items():
        cells = [str(depth)]
        for place, name in enumerate(("aligned", "aligned + REPAIR")):
            lost = [
                pair[0].mean_teacher.test.accuracy
                - pair[order.index(name)].student.test.accuracy
                for pair in pairs
            ]
            published = PUBLISHED.get(depth)
            cells += [_cell(lost), str(published[place]) if published else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    legend = "*Points of accuracy lost to the mean member; MNIST: arXiv 2211.08403.*"
    return [*lines, "", legend, ""]


def _cell(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    if len(values) < 2:
        return mean
    error = 100 * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {error:.1f}"


if __name__ == "__main__":
    main()
