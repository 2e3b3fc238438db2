"""The demo's story over seeds, in both regimes: benchmarks/digits/report.json.

Command: .venv/bin/python benchmarks/digits/run.py        (about 14 minutes; one core)
Expect: one start: kd and the tuned WeightFormer recover most of the headroom, the
prediction for unseen members about as much as their soup. Independent: the soup is at
chance, the prediction is about the first member, tuning recovers most.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from metaensemble.engine import RunLog
from metaensemble.report import Report, Study, read_reports, write_report
from metaensemble.report.table import comparison_table, markdown_table
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.story import Regime, Story, tell, tell_weightformer

HERE = Path(__file__).parent
REGIMES: tuple[Regime, ...] = ("one-start", "independent")
HEADS = (
    # the paper's, with equation 1 as printed
    {"head": "direct", "direction": "reverse", "learning_rate": 2e-3},
    {"head": "mixture", "gain": 0.0},
)
"""Other forms of the generator, predicted only, beside the story's residual head."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="keep those below it")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the demo
    rows: list[Report] = []
    if options.first:
        rows = [r for r in read_reports(options.out) if (r.seed or 0) < options.first]
    for regime in REGIMES:
        for seed in range(options.first, options.seeds):
            rows += told(Story(regime=regime), seed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_report(options.out / "report.json", Study(study="digits", rows=rows))
    tables = [
        markdown_table([row for row in rows if row.regime == regime])
        for regime in REGIMES
    ]
    text = "\n\n".join(
        f"### {regime}\n\n{table}"
        for regime, table in zip(REGIMES, tables, strict=True)
    )
    (options.out / "table.md").write_text(text, encoding="utf-8")
    story = [row for row in rows if row.method.get("head", "residual") == "residual"]
    Console().print(comparison_table(story))


def told(story: Story, seed: int) -> list[Report]:
    with tempfile.TemporaryDirectory() as name, RunLog() as log:
        folder = Path(name)
        running = RunOptions(seed=seed, device="cpu", cache=folder / "cache")
        session = open_session(running, story.load(seed), folder, log)
        command = "python benchmarks/digits/run.py"
        rows = tell(story, session, folder, command)
        for fields in HEADS:
            session.clear_checkpoints()
            form = story.weightformer.model_copy(update={**fields, "tune_epochs": 0})
            rows += tell_weightformer(story, form, session, folder, command)
        return rows


if __name__ == "__main__":
    main()
