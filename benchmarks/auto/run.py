"""Does `auto` pick a method that is as good as the best of all at the same budget?

Command: .venv/bin/python benchmarks/auto/run.py [--cifar10 DATA --work WORK]
On the digits, five seeds in two regimes, everything runs here, 10 minutes of one core.
On CIFAR-10 the zoos and the single methods' rows are those of
benchmarks/distillation_small (WORK, its report.json), and only `auto` runs.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.errors import InputError
from metaensemble.core.files import write_json, write_text
from metaensemble.data import ImageData, load_data
from metaensemble.engine import RunLog
from metaensemble.methods import Auto
from metaensemble.report import Report, read_reports
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.workflows.fuse import fuse_and_find, fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.reporting import report_student
from metaensemble.workflows.story import Regime, Story
from metaensemble.workflows.teach import Knowledge, teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/auto/run.py"
SEEDS = (0, 1, 2, 3, 4)
PASSES = 20
"""Budget on the digits, over the training images; of `auto` for all its candidates."""
SINGLE: dict[Regime, tuple[str, ...]] = {
    "one-start": ("best_member", "soup", "greedy_soup", "learned_soup"),
    "independent": ("best_member", "repair", "regression_merge"),
}
"""Methods that merge; those below train."""
TRAINED = ("kd", "dkd", "meal_v2", "cc", "rkd", "sp", "latent_ensemble")
ZOOS = (0, 10, 20)
BUDGET = 45_000
"""Images on CIFAR-10, as in benchmarks/distillation_small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", help="the data; without it the digits alone run")
    parser.add_argument("--work", type=Path, help="of distillation_small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for regime in SINGLE:
        for seed in SEEDS:
            rows += digits(regime, seed)
            print(
                regime, seed, [(r["method"], round(r["test"], 4)) for r in rows[-12:]]
            )
    if options.cifar10:
        for seed in ZOOS:
            rows += cifar10(options.cifar10, options.work, seed)
            print("cifar10", seed, rows[-1]["method"], rows[-1]["chosen"])
    document = {"schema": 1, "study": "auto", "command": COMMAND, "rows": rows}
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))


def digits(regime: Regime, seed: int) -> list[dict[str, Any]]:
    """Return a row per method on one ensemble of four, `auto` the last."""
    story = Story(regime=regime)
    data = story.load(seed)
    with tempfile.TemporaryDirectory() as name, RunLog(quiet=True) as log:
        folder = Path(name)
        running = RunOptions(seed=seed, device="cpu", cache=folder / "cache")
        session = open_session(running, data, None, log)
        ensemble = taught(session, folder, story)
        images = len(data.train) + (len(data.unlabelled) if data.unlabelled else 0)
        rows = []
        for method in (*SINGLE[regime], *TRAINED):
            settings = {"epochs": PASSES} if method in TRAINED else {}
            try:
                one = make_method(method, **settings)
                student = fuse_students(session, ensemble, one)[-1]
            except InputError as error:
                print(f"{method} is left out: {error}")
                continue
            report = report_student(
                session, ensemble, student, command=COMMAND, method=one
            )
            rows.append(row("digits", regime, seed, report))
        report = automatic(session, ensemble, PASSES * images)
        return [*rows, row("digits", regime, seed, report)]


def taught(session: Session, folder: Path, story: Story) -> Ensemble:
    """Train four members as in the story: of one start, or independent."""
    start = None
    if story.regime == "one-start":
        (start,) = teach_members(
            session.reseeded(session.seed + 900),
            folder / "start",
            architecture=story.architecture,
            members=1,
            method=story.start,
        )
    members = teach_members(
        session,
        folder / "zoo",
        architecture=story.architecture,
        members=4,
        method=story.teaching,
        start=start,
        knowledge=Knowledge(subset=story.subset),
    )
    return Ensemble(tuple(members))


def cifar10(spec: str, work: Path, seed: int) -> list[dict[str, Any]]:
    """Return the rows of distillation_small at that budget, and `auto`'s."""
    data: ImageData = load_data(
        spec, limit_train=10_000, augment="flip", unlabelled=True
    )
    known = read_reports(HERE.parent / "distillation_small")
    rows = [
        row("cifar10", "independent", seed, report)
        for report in known
        if report.seed == seed and (report.cost.train_images or 0) <= BUDGET
    ]
    with RunLog(quiet=True) as log:
        running = RunOptions(seed=seed, device="cpu", cache=work / "cache")
        session = open_session(running, data, None, log)
        ensemble = load_ensemble([work / f"zoo{seed}"], data=data)
        report = automatic(session, ensemble, BUDGET)
    return [*rows, row("cifar10", "independent", seed, report)]


def automatic(session: Session, ensemble: Ensemble, images: int) -> Report:
    """Return the report of what `auto` makes of an ensemble."""
    method = Auto(budget=f"{images}images")
    fusion = fuse_and_find(session, ensemble, method)
    return report_student(
        session,
        fusion.ensemble,
        fusion.student,
        command=COMMAND,
        method=method,
        found=fusion.found,
    )


def row(data: str, regime: str, seed: int, report: Report) -> dict[str, Any]:
    """Return what the comparison needs of a report."""
    validation = report.student.validation
    choice = report.choice
    tried = None
    if choice is not None:
        tried = [[c.method, c.settings, c.accuracy] for c in choice.candidates]
    return {
        "data": data,
        "regime": regime,
        "seed": seed,
        "method": report.method["name"],
        "settings": report.method.get("temperature"),
        "chosen": choice.student.method if choice else None,
        "tried": tried,
        "test": report.student.test.accuracy,
        "validation": validation.accuracy if validation else None,
        "count": report.student.test.count,
        "ensemble": report.ensemble.test.accuracy,
        "mean_member": report.mean_teacher.test.accuracy,
        "images": report.cost.train_images,
        "seconds": report.cost.train_seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return, per data and seed, the best method on test beside what auto picked."""
    lines = [
        "| data | members | seed | ensemble | best of all on test | | auto picked | | "
        "difference | one standard error |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for one in rows:
        groups.setdefault((one["data"], one["regime"], one["seed"]), []).append(one)
    behind: dict[tuple[str, str], list[float]] = {}
    for (data, regime, seed), found in groups.items():
        auto = next(one for one in found if one["method"] == "auto")
        best = max((o for o in found if o is not auto), key=lambda o: o["test"])
        gap = 100 * (best["test"] - auto["test"])
        error = 100 * (best["test"] * (1 - best["test"]) / best["count"]) ** 0.5
        behind.setdefault((data, regime), []).append(gap)
        lines.append(
            f"| {data} | {regime} | {seed} | {100 * auto['ensemble']:.1f} "
            f"| {best['method']} | {100 * best['test']:.1f} | {auto['chosen']} "
            f"| {100 * auto['test']:.1f} | {gap:+.1f} | {error:.1f} |"
        )
    lines += ["", "| data | members | best of all - auto | seeds |"]
    lines.append("| --- | --- | ---: | ---: |")
    for (data, regime), gaps in behind.items():
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.fmean(gaps)
        lines.append(f"| {data} | {regime} | {mean:+.2f} ± {error:.2f} | {len(gaps)} |")
    lines += [
        "",
        "*Test, in % and points; the standard error is the binomial one.*",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
