"""Does `auto` pick a method that is as good as the best of all at the same budget?

Command: .venv/bin/python benchmarks/auto/run.py [--cifar10 DATA --work WORK]
On the digits, five seeds in two regimes, everything runs here, 10 minutes of one core.
On CIFAR-10 zoos and single methods' rows are those that benchmarks/distillation_small
has left in WORK (`run.py DATA WORK --seeds 0 10 20 30 40`), and only `auto` runs.
Finished rows are kept beside this file, in report.json, and are not made again.
"""

import argparse
import json
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
from metaensemble.report import Report, read_report
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.workflows.fuse import fuse_and_find, fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.story import Regime, Story
from metaensemble.workflows.teach import Knowledge, teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/auto/run.py"
SEEDS = (40, 41, 42, 43, 44)
"""On seeds 0 to 34 other rules of choice were found wanting (benchmarks/LOG.md)."""
PASSES = 20
"""Budget on the digits, over the training images; of `auto` for all its candidates."""
SINGLE: dict[Regime, tuple[str, ...]] = {
    "one-start": ("best_member", "soup", "greedy_soup", "learned_soup"),
    "independent": ("best_member", "repair", "regression_merge"),
}
"""Methods that merge; those below train."""
TRAINED = ("kd", "dkd", "meal_v2", "cc", "rkd", "sp", "latent_ensemble")
ZOOS = (0, 10, 20, 30, 40)
BUDGET = 45_000
"""Images on CIFAR-10, as in benchmarks/distillation_small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", help="the data; without it the digits alone run")
    parser.add_argument("--work", type=Path, help="of distillation_small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if (HERE / "report.json").exists():
        rows = json.loads((HERE / "report.json").read_text())["rows"]
    done = {(one["data"], one["regime"], one["seed"]) for one in rows}
    for regime in SINGLE:
        for seed in SEEDS:
            if ("digits", regime, seed) not in done:
                rows += digits(regime, seed)
                written(rows)
    for seed in ZOOS if options.cifar10 else ():
        if ("cifar10", "independent", seed) not in done:
            rows += cifar10(options.cifar10, options.work, seed)
            written(rows)


def written(rows: list[dict[str, Any]]) -> None:
    """Write what there is so far; validation alone is looked at on the way."""
    document = {"schema": 1, "study": "auto", "command": COMMAND, "rows": rows}
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))
    last = rows[-1]
    print(last["data"], last["regime"], last["seed"], last["tried"], flush=True)


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
            report = measure_student(
                session, ensemble, student, command=COMMAND, method=one
            ).report
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
    known = [read_report(path) for path in sorted(work.glob(f"rows/{seed}-*.json"))]
    rows = [
        row("cifar10", "independent", seed, report)
        for report in known
        if (report.cost.train_images or 0) <= BUDGET
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
    return measure_student(
        session,
        fusion.ensemble,
        fusion.student,
        command=COMMAND,
        method=method,
        found=fusion.found,
    ).report


def key_of(report: Report) -> str:
    """Return a method's name and what of it differs between rows of one method."""
    words = [report.method["name"]]
    usual = make_method(words[0]).model_dump()
    if report.method.get("temperature") != usual.get("temperature"):
        words.append(f"T={report.method['temperature']:g}")
    if report.method.get("perturbation", "none") != "none":
        words.append(str(report.method["perturbation"]))
    return " ".join(words)


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
        "key": key_of(report),
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
    """Return what `auto` picked per seed, and how far it is from the best method."""
    groups: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    for one in rows:
        group = groups.setdefault((one["data"], one["regime"]), {})
        group.setdefault(one["seed"], []).append(one)
    lines = [
        "| data | members | best method on average | auto below it | best of every "
        "seed | auto below it | seeds within one error |",
        "| --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    for (data, regime), seeds in groups.items():
        lines.append(f"| {data} | {regime} | {' | '.join(gaps(seeds))} |")
    lines += [
        "",
        "| data | members | seed | ensemble | best of all | | auto picked | | tried |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for (data, regime), seeds in groups.items():
        for seed, found in seeds.items():
            single, auto = parted(found)
            best = max(single, key=lambda one: one["test"])
            lines.append(
                f"| {data} | {regime} | {seed} | {100 * auto['ensemble']:.1f} "
                f"| {best['key']} | {100 * best['test']:.1f} | {auto['chosen']} "
                f"| {100 * auto['test']:.1f} | {len(auto['tried'])} |"
            )
    lines += [
        "",
        "*Test, in % and points, mean ± standard error over seeds. Best method on "
        "average: of those that ran with every seed; best of every seed: chosen on "
        "test, which favours luck; within one error: the binomial one of that test "
        "set.*",
        "",
    ]
    return "\n".join(lines)


def parted(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the single methods' rows and auto's."""
    (auto,) = [one for one in rows if one["method"] == "auto"]
    return [one for one in rows if one is not auto], auto


def gaps(seeds: dict[int, list[dict[str, Any]]]) -> list[str]:
    """Return cells: the best method and auto's distance from it, in two senses."""
    pairs = [parted(rows) for rows in seeds.values()]
    common = set.intersection(*[{o["key"] for o in single} for single, _ in pairs])

    def scores(key: str) -> list[float]:
        return [o["test"] for single, _ in pairs for o in single if o["key"] == key]

    best = max(sorted(common), key=lambda key: statistics.fmean(scores(key)))
    own = [auto["test"] for _, auto in pairs]
    tops = [max(single, key=lambda one: one["test"]) for single, _ in pairs]
    errors = [(t["test"] * (1 - t["test"]) / t["count"]) ** 0.5 for t in tops]
    near = [
        t["test"] - o <= e + 1e-9 for t, o, e in zip(tops, own, errors, strict=True)
    ]
    return [
        best,
        below(scores(best), own),
        ", ".join(sorted({t["key"] for t in tops})),
        below([t["test"] for t in tops], own),
        f"{sum(near)} of {len(near)}",
    ]


def below(best: list[float], own: list[float]) -> str:
    """Return the mean difference in points and, from two seeds on, its error."""
    values = [100 * (b - o) for b, o in zip(best, own, strict=True)]
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    return f"{mean:+.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
