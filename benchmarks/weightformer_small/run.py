"""WeightFormer for ensembles it has never seen: three regimes, three draws each.

Command: .venv/bin/python benchmarks/weightformer_small/run.py CIFAR10 WORK \
    [--scale small] [--regimes one-start unequal independent]
First: benchmarks/weightformer_small/zoos.py CIFAR10 WORK, which makes the zoos.
About an hour of one core; a regime that is not named keeps its report.
Expect, with one start, the student above the soups; with independent members no worse
than a member, and tuned far above distillation from fresh weights.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from scales import REGIMES, SCALES, Scale
from zoos import folders, open_study

from metaensemble.engine import RunLog
from metaensemble.merging import Merger
from metaensemble.methods import KD, WeightFormerMethod
from metaensemble.report import Report, Study, write_report
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.weightformer import Predictor, load_predictor, save_predictor
from metaensemble.workflows.conditioning import conditioning, gain_of_students
from metaensemble.workflows.learning import learn_predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.predict import predictor_method
from metaensemble.workflows.predicting import (
    predicted_student,
    refined_student,
    tune_student,
)
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.students import (
    Student,
    distil_student,
    distillation_images,
    merge_student,
)

HERE = Path(__file__).parent
COMMAND = "python benchmarks/weightformer_small/run.py"
SHORT = 10_000
"""Budgets up to this many images take the small rate (LOG.md)."""
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
Made = tuple[MethodUnion, Student]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if scale.device == "cpu":
        torch.set_num_threads(1)
    for regime in options.regimes:
        with RunLog() as log:
            session = open_study(options.cifar10, options.work, log, scale)
            rows = told(session, options.work, regime, scale)
        folder = options.out / regime
        folder.mkdir(parents=True, exist_ok=True)
        study = Study(study=f"weightformer_small {regime}", rows=rows)
        write_report(folder / "report.json", study)
        (folder / "table.md").write_text(markdown_table(rows), encoding="utf-8")
        Console().print(comparison_table(rows))


def told(session: Session, work: Path, regime: str, scale: Scale) -> list[Report]:
    """Return the reports of a regime: learn on the zoo once, then every draw."""
    zoo_folder, draws = folders(work, regime, scale)
    zoo = load_ensemble([zoo_folder], data=session.data)
    predictors = [
        learnt(session, zoo, work / f"{regime}-{name}.safetensors", fields, scale)
        for name, fields in scale.generators[regime].items()
    ]
    unseen = [load_ensemble([folder], data=session.data) for folder in draws]
    rows: list[Report] = []
    columns: defaultdict[int, list[Student]] = defaultdict(list)
    for draw, ensemble in enumerate(unseen):
        made = students(session, ensemble, predictors, regime, scale)
        for column, (method, student) in enumerate(made):
            row = measure_student(
                session, ensemble, student, command=COMMAND, method=method
            ).report
            test = row.student.test
            text = f"{test.accuracy:.4f}, h {row.headroom.recovered}"
            session.log.say(f"draw {draw} {student.stage} {method}: {text}")
            rows.append(row.model_copy(update={"draw": draw}))
            columns[column].append(student)
    gains = [gain_of_students(session, column, unseen) for column in columns.values()]
    whole = [conditioning(session, predictor, unseen) for predictor in predictors]
    filled = []
    for number, row in enumerate(rows):
        found = gains[number % len(columns)]
        if row.stage == "predicted" and row.method["refine"] == "none":
            which = [predictor_method(p).head for p in predictors]
            found = whole[which.index(row.method["head"])]
        filled.append(row.model_copy(update={"conditioning": found}))
    return filled


def learnt(
    session: Session, zoo: Ensemble, path: Path, fields: dict[str, Any], scale: Scale
) -> Predictor:
    """Return the predictor of a zoo, learnt unless it is there."""
    if not path.exists():
        method = WeightFormerMethod(**fields, tune_epochs=0)
        found = learn_predictor(
            session,
            zoo,
            method,
            teachers=scale.teachers,
            hold_out=scale.held_out,
        )
        session.log.say(f"learnt in {found.student.train_seconds:.0f} s")
        save_predictor(path, found.predictor)
    return load_predictor(path)


def students(
    session: Session,
    ensemble: Ensemble,
    predictors: Sequence[Predictor],
    regime: str,
    scale: Scale,
) -> Iterator[Made]:
    """Yield the student of every method, and how it was made.

    Merges; distillation by start and budget; each predictor's, as predicted and as
    refined; the first one's tuned from there, by budget.
    """
    images = len(distillation_images(session))
    for name in MERGES[regime]:
        merger = make_method(name)
        assert isinstance(merger, Merger)
        yield merger, merge_student(session, ensemble, merger)
    for start in STARTS[regime]:
        for budget in scale.budgets[regime]:
            rate = 0.05 if start == "scratch" else rate_of(budget)
            epochs = round(budget / images, 4)
            kd = KD(start=start, epochs=epochs, learning_rate=rate)
            yield kd, distil_student(session, ensemble, kd)
    for number, predictor in enumerate(predictors):
        method = predictor_method(predictor)
        student = predicted_student(session, ensemble, predictor)
        yield method, student
        change = {**method.model_dump(), "refine": scale.refine[regime]}
        method = WeightFormerMethod.model_validate(change)
        refined = refined_student(session, ensemble, student, method.refine)
        yield method, refined
        for budget in scale.budgets[regime] if not number else ():
            tuning = method.model_copy(
                update={
                    "tune_epochs": round(budget / images, 4),
                    "tune_learning_rate": rate_of(budget),
                }
            )
            tuned = tune_student(session, ensemble, refined, tuning)
            assert tuned is not None
            yield tuning, tuned


def rate_of(budget: int) -> float:
    """Return the peak rate of a training that starts from a good network."""
    return 0.015 if budget <= SHORT else 0.05


if __name__ == "__main__":
    main()
