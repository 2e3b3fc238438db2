"""Fuses pairs of members of two widths: benchmarks/ot/report.json and table.md.

Command: benchmarks/ot/run.sh CIFAR10 OUT, which teaches the members before.
A seed is a pair: no member is in two of them; the data split is the same.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from metaensemble.data import ImageData
from metaensemble.engine import RunLog
from metaensemble.merging import BestMember, OtFusion
from metaensemble.methods import KD
from metaensemble.report import Report, Study, read_reports, write_report
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.teachers import load_ensemble
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.options import DataOptions, RunOptions, open_session
from metaensemble.workflows.registry import MethodUnion
from metaensemble.workflows.reporting import measure_student

HERE = Path(__file__).parent
METHODS: dict[str, MethodUnion] = {
    "best": BestMember(),
    "fusion": OtFusion(),
    # the plain average, of every kind; the last is the paper's
    "even": OtFusion(reference_share=0.5),
    "even-exact": OtFusion(reference_share=0.5, plan="exact"),
    "even-sinkhorn": OtFusion(reference_share=0.5, plan="sinkhorn"),
    "even-weights": OtFusion(reference_share=0.5, matching="weights"),
    "even-paper": OtFusion(reference_share=0.5, matching="weights", plan="exact"),
    "kd": KD(epochs=1, plain="never"),
    "kd-fusion": KD(epochs=1, start="ot_fusion", plain="never"),
}
TABLES = {
    "labelled": "One pass of kd is over the 9,000 labelled images",
    "all": "One pass of kd is over 49,000 images, 40,000 of them without labels",
}
UNLABELLED = ("kd", "kd-fusion")
"""Methods that are run a second time with the images without labels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("zoo", type=Path, help="with the folders width32 and width48")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DataOptions(data=options.data, limit_train=10_000).load(unlabelled=True)
    for unlabelled in (False, True):
        for seed in options.seeds:
            own = data if unlabelled else replace(data, unlabelled=None)
            fused(own, options.zoo, seed)
    rows: list[Report] = []
    parts: list[str] = []
    for kind, title in TABLES.items():
        paths = sorted((options.zoo / "reports").glob(f"*-{kind}-*.json"))
        own = [row for path in paths for row in read_reports(path)]
        parts.append(f"### {title}\n\n{markdown_table(own)}")
        rows += own
    write_report(options.out / "report.json", Study(study="ot", rows=rows))
    (options.out / "table.md").write_text("\n\n".join(parts), encoding="utf-8")
    Console().print(comparison_table(rows))


def fused(data: ImageData, zoo: Path, seed: int) -> None:
    """Write a report per method that is not yet there."""
    members = load_ensemble(
        [
            zoo / "width32" / f"member-{seed:04}.safetensors",
            zoo / "width48" / f"member-{100 + seed:04}.safetensors",
        ],
        data=data,
    )
    running = RunOptions(seed=seed, device="cpu", cache=zoo / "cache", quiet=True)
    for name, method in METHODS.items():
        if data.unlabelled is not None and name not in UNLABELLED:
            continue
        kind = "labelled" if data.unlabelled is None else "all"
        report = zoo / "reports" / f"{seed}-{kind}-{name}.json"
        if report.exists():
            continue
        with RunLog(quiet=True) as log:
            session = open_session(running, data, None, log)
            (student,) = fuse_students(session, members, method)
            row: Report = measure_student(
                session, members, student, command="benchmarks/ot/run.sh", method=method
            ).report
        report.parent.mkdir(exist_ok=True)
        write_report(report, row)
        print(seed, kind, name, row.student.test.accuracy, *row.notes, flush=True)


if __name__ == "__main__":
    main()
