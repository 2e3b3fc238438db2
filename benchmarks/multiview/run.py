"""The theory's world: what ensembles and their students learn in it, over ten seeds.

Command: .venv/bin/python benchmarks/multiview/run.py        (12 minutes of one core)
Expect, as Allen-Zhu and Li (arXiv 2012.09816) prove it: a single network errs on
single-view images, since its seed decides which of a class's features it learns;
single < self-distilled < distilled <= ensemble; no such gain for networks that are
trained together, nor from distilling networks of random features.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import t as student_t
from study import COMMAND, STUDENTS, Row, Setting, Study
from torch import nn

from metaensemble.core.files import write_json, write_text
from metaensemble.data import load_data
from metaensemble.data.multiview import MultiView
from metaensemble.engine import RunLog
from metaensemble.workflows.options import RunOptions, open_session

SEEDS = range(20, 30)
"""Those from 100 served to choose the settings; 0, 5, 10 and 15 were seen meanwhile."""
SETTING = Setting()
ARMS = {
    "single": "single network, mean of {members}",
    "self-distilled": "self-distilled (other seed), mean of {self_students}",
    "distilled": "distilled from the ensemble",
    "ensemble": "ensemble of {members}",
    "joint sum": "{members} networks trained jointly, sum of logits, mean of {joint}",
    "joint mean": "{members} networks trained jointly, mean of logits, mean of {joint}",
    "random features": "random features, mean of {members}",
    "random features, distilled": "random features distilled from their ensemble",
    "random features, ensemble": "ensemble of {members} random-feature networks",
}
"""The rows of the table."""
GAINS = (
    ("self-distilled", "single"),
    ("distilled", "self-distilled"),
    ("ensemble", "distilled"),
    ("joint sum", "single"),
    ("joint mean", "single"),
    ("random features, ensemble", "random features"),
    ("random features, distilled", "random features"),
)
"""Whose difference is shown, pair by pair of the same seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--on", choices=["test", "validation"], default="test")
    parser.add_argument("--out", type=Path, help="a folder; default: print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in options.seeds:
        rows += drawn(seed, SETTING, options.arms)
        print(f"seed {seed}\n{table(rows, SETTING, options.on)}", flush=True)
        if options.out is not None:
            written(options.out, rows)


def written(folder: Path, rows: list[Row]) -> None:
    """Write the report and the table of rows."""
    report = {"schema": 1, "study": "multiview", "command": COMMAND, "rows": rows}
    write_json(folder / "report.json", report)
    write_text(folder / "table.md", table(rows))


def drawn(
    seed: int, setting: Setting = SETTING, arms: Sequence[str] = tuple(ARMS)
) -> list[Row]:
    """Return the rows of one draw: its own world, its own networks.

    Args:
        seed: of the world, the split and, times 1000, of the networks.
        setting: what is trained.
        arms: which; members are trained for all but the joint and random ones.
    """
    text = f"{setting.world},seed={seed}"
    data = load_data(text, validation_fraction=0.5, seed=seed)
    with tempfile.TemporaryDirectory() as name, RunLog(quiet=True) as log:
        folder = Path(name)
        running = RunOptions(seed=1000 * seed, device="cpu", cache=folder / "cache")
        study = Study(
            setting, MultiView.parse(text), open_session(running, data, None, log)
        )
        found: dict[str, list[nn.Module]] = {}
        if set(arms) & {"single", "ensemble", *STUDENTS}:
            found |= study.of_members(folder, arms)
        for arm, factor in (("joint sum", 1.0), ("joint mean", 1 / setting.members)):
            if arm in arms:
                found[arm] = [study.jointly(factor, i) for i in range(setting.joint)]
        if any(arm.startswith("random") for arm in arms):
            found |= study.of_random_features()
        return [study.row(seed, arm, found[arm]) for arm in ARMS if arm in found]


def per_draw(rows: list[Row], arm: str, figure: str) -> list[float]:
    """Return an arm's figure, draw by draw."""
    chosen = [row for row in rows if row["arm"] == arm]
    return [row[figure] for row in sorted(chosen, key=lambda row: row["draw"])]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (Student's t)."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return mean, float("nan")
    quantile = float(student_t.ppf(0.975, count - 1))
    return mean, quantile * statistics.stdev(values) / count**0.5


def table(rows: list[Row], setting: Setting = SETTING, on: str = "test") -> str:
    """Return the accuracies and the gains in Markdown.

    Args:
        rows: of `drawn`.
        setting: gives the numbers of networks.
        on: "test", or "validation", which shows no figure of the test split.
    """
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    columns = {on: f"{on} accuracy"}
    if on == "test":
        columns |= {"single_view": "single-view images"}
        columns |= {"multi_view": "multi-view images"}
    columns |= {"features_learned": "features learned"}
    lines = [f"| | {' | '.join(columns.values())} |"]
    lines.append(f"| --- |{' ---: |' * len(columns)}")
    for arm in arms:
        cells = [_cell(per_draw(rows, arm, figure)) for figure in columns]
        title = ARMS[arm].format(**vars(setting))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    *shown, _ = columns
    names = [columns[figure] for figure in shown]
    lines += ["", f"| difference | {' | '.join(names)} |"]
    lines.append(f"| --- |{' ---: |' * len(names)}")
    for better, worse in GAINS:
        if better in arms and worse in arms:
            cells = [_cell(gains(rows, better, worse, figure)) for figure in shown]
            lines.append(f"| {better} - {worse} | {' | '.join(cells)} |")
    draws = len({row["draw"] for row in rows})
    lines += ["", f"*In %; ± half of the 95 % interval over {draws} seeds.*", ""]
    return "\n".join(lines)


def gains(rows: list[Row], better: str, worse: str, figure: str) -> list[float]:
    """Return the difference of two arms, draw by draw."""
    pairs = zip(
        per_draw(rows, better, figure), per_draw(rows, worse, figure), strict=True
    )
    return [a - b for a, b in pairs]


def _cell(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


if __name__ == "__main__":
    main()
