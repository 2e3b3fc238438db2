"""Writes the tables of docs/choosing.md from the reports of the studies.

Command: .venv/bin/python benchmarks/choosing.py
A test checks that docs/choosing.md is what this writes. A study that is not there, or
has no such row, is an error: a choice needs its figures.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from metaensemble.report import Report, read_reports

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "choosing.md"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MEMORY: dict[str, Any] = {"name": "weightformer", "head": "residual"}
READER: dict[str, Any] = {"name": "weightformer", "head": "mixture"}
FROM_BEST: dict[str, Any] = {"name": "kd", "start": "best_member", "temperature": 2.0}
TOLD = (
    f"*Percent of the headroom that was recovered, mean {PLUS_MINUS} standard error "
    "over seeds or draws, on test; 0 is the mean member, 100 the ensemble.*"
)


@cache
def rows(study: str) -> list[Report]:
    return read_reports(ROOT / "benchmarks" / study)


def found(
    study: str, regime: str | None = None, images: int | None = None, **wanted: Any
) -> list[Report]:
    """Return the reports of a method with these hyperparameters.

    Args:
        study: folder under benchmarks.
        regime: of the members, where the study has two.
        images: that its training saw, in thousands, rounded.
        wanted: of the method; ``stage`` is the report's own.
    """
    stage = wanted.pop("stage", None)
    part = [
        row
        for row in rows(study)
        if wanted.items() <= row.method.items()
        and regime in (None, row.regime)
        and (stage is None or row.stage == stage)
        and (images is None or round((row.cost.train_images or 0) / 1e3) == images)
    ]
    settings = {json.dumps(row.method, sort_keys=True) for row in part}
    if len(settings) != 1:
        raise SystemExit(f"{study} has {len(settings)} settings of {wanted}, not one")
    return part


def mean(values: Sequence[float], digits: int = 0) -> str:
    """Return mean and standard error."""
    text = f"{fmean(values):.{digits}f}"
    if len(values) == 1:
        return text
    error = stdev(values) / len(values) ** 0.5
    return f"{text} {PLUS_MINUS} {error:.{digits}f}"


def share(part: Sequence[Report]) -> str:
    return mean([100 * (row.headroom.recovered or 0) for row in part])


def ece(part: Sequence[Report]) -> str:
    return mean([100 * row.student.test.ece for row in part], 1)


def headroom(study: str, regime: str | None = None) -> str:
    """Return the headroom of a study in points, a set of members counted once."""
    part = [row for row in rows(study) if regime in (None, row.regime)]
    sets = {tuple(t.sha256 for t in row.teachers): row for row in part}
    room = [100 * r.headroom.ensemble_minus_mean_teacher for r in sets.values()]
    return mean(room, 1)


def link(study: str) -> str:
    folder = study.split("/")[0]
    return f"[{study}](../benchmarks/{folder}/README.md)"


def table(titles: Sequence[str], body: Sequence[Sequence[str]], note: str) -> str:
    """Return a Markdown table and a line below it; numbers stand on the right."""
    rules = ["---:" if cell[-1] in "-0123456789" else "---" for cell in body[-1]]
    lines = [titles, rules, *body]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note, ""])


def decisions() -> str:
    one, apart = "weightformer_small/one-start", "weightformer_small/independent"
    body = [
        (
            "one start, no training",
            "`learned_soup`",
            share(found("soups", name="learned_soup", target="ensemble")),
            link("soups"),
        ),
        (
            "one start, training allowed",
            "`kd --start soup`",
            share(found(one, name="kd", start="soup", images=63)),
            link(one),
        ),
        (
            "independent, no training",
            "`regression_merge`",
            share(found("merging", name="regression_merge")),
            link("merging"),
        ),
        (
            "independent, training on few images",
            "`kd --start regression_merge`",
            share(found("merging", name="kd", start="regression_merge", images=24)),
            link("merging"),
        ),
        (
            "independent, training allowed",
            "`kd`",
            share(found("distillation_small", images=90, **FROM_BEST)),
            link("distillation_small"),
        ),
        (
            "half of the multiply-adds",
            "`blockwise --max-macs`",
            share(found("distillation_small", name="blockwise")),
            link("distillation_small"),
        ),
        (
            "members of other widths",
            "`kd --start ot_fusion`",
            share(found("ot", name="kd", start="ot_fusion", images=49)),
            link("ot"),
        ),
        (
            "new ensembles every week, one start",
            "`predict --refine learned_soup`",
            share(found(one, **{**READER, "refine": "learned_soup"})),
            link(one),
        ),
        (
            "new ensembles every week, independent",
            "`predict --refine regression_merge`",
            share(
                found(
                    apart,
                    **{**MEMORY, "refine": "regression_merge"},
                    stage="predicted",
                )
            ),
            link(apart),
        ),
    ]
    titles = ("you have", "try first", "headroom kept (%)", "study")
    return table(titles, body, TOLD)


def free() -> str:
    """Return the mergers beside each other: what needs no training of the student."""
    columns = [
        ("soups", None),
        ("digits", "one-start"),
        ("merging", None),
        ("digits", "independent"),
    ]
    titles = [
        "method",
        "CIFAR-10, 8 of one start",
        "digits, 4 of one start",
        "CIFAR-10, 4 independent",
        "digits, 4 independent",
    ]
    mergers: tuple[dict[str, Any], ...] = (
        {"name": "best_member"},
        {"name": "soup"},
        {"name": "greedy_soup"},
        {"name": "learned_soup", "target": "ensemble"},
        {"name": "aligned_soup"},
        {"name": "repair"},
        {"name": "regression_merge"},
    )
    body = [
        ["headroom (points)", *(headroom(*column) for column in columns)],
        *(
            [f"`{wanted['name']}`", *(_if_measured(*c, **wanted) for c in columns)]
            for wanted in mergers
        ),
    ]
    return table(titles, body, f"{TOLD[:-1]} A dash: not measured.*")


def starts() -> str:
    """Return what kd makes of each start, by the images that it sees."""
    budgets = (5, 24, 98)
    body = [
        [
            f"`--start {start}`",
            *(
                share(found("merging", name="kd", start=start, images=images))
                for images in budgets
            ),
        ]
        for start in ("scratch", "best_member", "regression_merge")
    ]
    titles = ["kd", *(f"{images},000 images" for images in budgets)]
    return table(titles, body, TOLD)


def losses() -> str:
    """Return the methods that distil, at equal images."""
    study = "distillation_small"
    body = []
    for row in rows(study):
        method, images = row.method, round((row.cost.train_images or 0) / 1e3)
        if images != 45 or row.seed != rows(study)[0].seed:
            continue
        plain = {"perturbation": "none", "temperature": 2.0}
        if method["name"] == "kd" and not plain.items() <= method.items():
            continue
        if method.get("perturbation", "none") != "none":
            continue
        part = [one for one in rows(study) if one.method == method]
        body.append((part, method["name"]))
    body.sort(key=lambda item: -fmean(r.headroom.recovered or 0 for r in item[0]))
    lines = [
        [
            f"[{name}](methods.md#{name})",
            share(part),
            mean([100 * row.fidelity.agreement for row in part], 1),
            ece(part),
        ]
        for part, name in body
    ]
    ensemble = {row.seed: row for row in rows(study)}.values()
    own = mean([100 * row.ensemble.test.ece for row in ensemble], 1)
    titles = ("method", "headroom kept (%)", "agrees with the ensemble (%)", "ECE (%)")
    note = f"{TOLD[:-1]} Each saw 45,000 images; the ensemble's ECE is {own} %.*"
    return table(titles, lines, note)


def generators() -> str:
    """Return students of ensembles that the WeightFormer never saw."""
    regimes = ("one-start", "unequal", "independent")
    merges = ("learned_soup", "learned_soup", "regression_merge")
    kinds = (("memory", MEMORY), ("reader", READER))
    lines = []
    for kind, wanted in kinds:
        for refined in (False, True):
            cells = [
                _if_measured(
                    f"weightformer_small/{regime}",
                    stage="predicted",
                    refine=merge if refined else "none",
                    **wanted,
                )
                for regime, merge in zip(regimes, merges, strict=True)
            ]
            told = "one pass, merged with its teachers" if refined else "one pass"
            lines.append([f"{kind}, {told}", *cells])
    for name in ("learned_soup", "regression_merge"):
        cells = [_if_measured(f"weightformer_small/{r}", name=name) for r in regimes]
        lines.append([f"`{name}` alone", *cells])
    titles = ("student", "one start", "one start, unequal knowledge", "independent")
    note = (
        f"{TOLD[:-1]} A dash: not measured. Memory and reader: see "
        "[the WeightFormer](weightformer.md).*"
    )
    return table(titles, lines, note)


def _if_measured(
    study: str, regime: str | None = None, stage: str | None = None, **wanted: Any
) -> str:
    if not any(wanted.items() <= row.method.items() for row in rows(study)):
        return "-"
    return share(found(study, regime, stage=stage, **wanted))


def alone() -> str:
    """Return what trains together without members, beside training alone."""
    text = (ROOT / "benchmarks" / "online_small" / "report.json").read_text("utf-8")
    measured = json.loads(text)["rows"]
    wanted = (
        ("alone", "member", "trained alone, on labels"),
        ("one", "branch-0", "`one`: a branch of three"),
        ("two_stage", "student", "three members, then `kd` from fresh weights"),
        ("smallest_alone", "member", "a network a tenth as large, alone"),
        ("student_ensemble", "student-3", "`student_ensemble`: its smallest"),
    )
    lines = []
    for group, network, told in wanted:
        part = [
            row
            for row in measured
            if row["group"] == group and row["network"].startswith(network)
        ]
        if not part:
            raise SystemExit(f"online_small has no {network} of {group}")
        lines.append(
            [
                told,
                f"{part[0]['parameters']:,}",
                mean([100 * row["test"]["accuracy"] for row in part], 1),
                mean([100 * row["test"]["ece"] for row in part], 1),
                f"{fmean(row['images'] for row in part) / 1e3:.0f} k",
                str(len(part)),
            ]
        )
    titles = ("network", "parameters", "accuracy (%)", "ECE (%)", "images", "seeds")
    note = f"*On test, mean {PLUS_MINUS} standard error over seeds; images seen.*"
    return table(titles, lines, note)


TABLES = {
    "decisions": decisions,
    "free": free,
    "starts": starts,
    "losses": losses,
    "generators": generators,
    "alone": alone,
}


def filled(text: str) -> str:
    """Return `text` with every table between its markers made anew."""
    for name, made in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        text = f"{head}{begin}{made()}{end}{tail}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
