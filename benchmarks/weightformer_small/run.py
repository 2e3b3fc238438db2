"""WeightFormer for ensembles it has never seen: three regimes, three draws each.

Command: .venv/bin/python benchmarks/weightformer_small/run.py CIFAR10 WORK \
    [--regimes one-start unequal independent]
First: benchmarks/weightformer_small/zoos.py CIFAR10 WORK, which makes the zoos.
About an hour of one core; a regime that is not named keeps the rows it has.
Expect, with one start, the predicted student above the soups; with independent members
no worse than a member, and tuned far above distillation from fresh weights.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from zoos import KNOWLEDGE, folders, open_study

from metaensemble.engine import RunLog
from metaensemble.merging import Merger
from metaensemble.methods import KD, WeightFormerMethod
from metaensemble.report import Report, Study, write_report
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.weightformer import load_predictor, save_predictor
from metaensemble.workflows.conditioning import conditioning
from metaensemble.workflows.options import Session
from metaensemble.workflows.predict import learn_predictor
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.reporting import report_student
from metaensemble.workflows.students import (
    Student,
    distil_student,
    merge_student,
    predicted_student,
    tune_student,
)

HERE = Path(__file__).parent
COMMAND = "python benchmarks/weightformer_small/run.py"
IMAGES = 49_000
"""Distillation images: labelled ones, and those whose labels are never read."""
BUDGETS = (5_000, 20_000, 90_000)
"""Images in total: of distillation, and of tuning. 90,000 is what an independent member
was trained on."""
RATES = {5_000: 0.015, 20_000: 0.05, 90_000: 0.05}
MERGES = {
    "one-start": ("best_member", "soup", "greedy_soup", "learned_soup"),
    "unequal": ("best_member", "soup", "greedy_soup", "learned_soup"),
    "independent": ("best_member", "aligned_soup", "regression_merge"),
}
STARTS = {
    "one-start": ("scratch", "best_member", "soup"),
    "unequal": (),
    "independent": ("scratch", "best_member", "regression_merge"),
}
GENERATOR: dict[str, dict[str, Any]] = {
    "one-start": {},
    "unequal": {},
    "independent": {},
}
"""Chosen on held-out members of the zoo (LOG.md)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--regimes", nargs="+", default=list(KNOWLEDGE))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for regime in options.regimes:
        with RunLog() as log:
            session = open_study(options.cifar10, options.work, log)
            rows = list(told(session, options.work, regime))
        folder = options.out / regime
        folder.mkdir(parents=True, exist_ok=True)
        study = Study(study=f"weightformer_small {regime}", rows=rows)
        write_report(folder / "report.json", study)
        (folder / "table.md").write_text(markdown_table(rows), encoding="utf-8")
        Console().print(comparison_table(rows))


def told(session: Session, work: Path, regime: str) -> Iterator[Report]:
    """Yield the reports of a regime: learn on the zoo once, then every draw."""
    zoo_folder, draws = folders(work, regime)
    zoo = load_ensemble([zoo_folder], data=session.data)
    path = work / f"{regime}.safetensors"
    if not path.exists():
        method = WeightFormerMethod(**GENERATOR[regime], tune_epochs=0)
        learnt = learn_predictor(session, zoo, method, teachers=(2, 6), hold_out=4)
        save_predictor(path, learnt.predictor)
    predictor = load_predictor(path)
    unseen = [load_ensemble([folder], data=session.data) for folder in draws]
    heard = conditioning(session, predictor, unseen)
    for draw, ensemble in enumerate(unseen):
        for method, student in students(session, ensemble, regime):
            yield reported(session, ensemble, method, student, draw)
        predicted = predicted_student(session, ensemble, predictor)
        method = WeightFormerMethod.model_validate(predictor.info.training["method"])
        row = reported(session, ensemble, method, predicted, draw)
        yield row.model_copy(update={"conditioning": heard})
        for budget in BUDGETS if STARTS[regime] else ():
            tuning = method.model_copy(
                update={
                    "tune_epochs": budget / IMAGES,
                    "tune_learning_rate": RATES[budget],
                }
            )
            tuned = tune_student(session, ensemble, predicted, tuning)
            assert tuned is not None
            yield reported(session, ensemble, tuning, tuned, draw)


def students(
    session: Session, ensemble: Ensemble, regime: str
) -> Iterator[tuple[MethodUnion, Student]]:
    """Yield what stands beside the predictor: merges, and distillation by budget."""
    for name in MERGES[regime]:
        merger = make_method(name)
        assert isinstance(merger, Merger)
        yield merger, merge_student(session, ensemble, merger)
    for start in STARTS[regime]:
        for budget in BUDGETS:
            kd = KD(
                start=start,
                epochs=budget / IMAGES,
                learning_rate=0.05 if start == "scratch" else RATES[budget],
            )
            yield kd, distil_student(session, ensemble, kd)


def reported(
    session: Session,
    ensemble: Ensemble,
    method: MethodUnion,
    student: Student,
    draw: int,
) -> Report:
    """Return the report of a student on a draw; here test data are read."""
    row = report_student(session, ensemble, student, command=COMMAND, method=method)
    test = row.student.test
    session.log.say(
        f"draw {draw} {method}: {test.accuracy:.4f}, h {row.headroom.recovered}"
    )
    return row.model_copy(update={"draw": draw})


if __name__ == "__main__":
    main()
