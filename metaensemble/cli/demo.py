"""``metaensemble demo``: the whole story on the embedded digits."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from metaensemble.cli.parse import parse
from metaensemble.cli.show import command_line, show
from metaensemble.core.config import Config
from metaensemble.engine import RunLog
from metaensemble.report import Rows, write_report
from metaensemble.report.contrast import contrasts
from metaensemble.report.page import write_page
from metaensemble.report.predictions import FOLDER, load_predictions
from metaensemble.report.verdict import best_method
from metaensemble.workflows.options import RunOptions, open_session, run_folder
from metaensemble.workflows.story import Regime, Story, file_of, tell


class Demo(Config):
    """Tell the whole story on scikit-learn's digits, in about a minute.

    Trains a zoo of small networks, then makes one network of four that the WeightFormer
    has never seen, by every method, and compares them with the ensemble.

    Example: metaensemble demo --out demo-out
    """

    out: Path = Path("demo-out")
    """The folder to write: report.json, page.html, members, students, predictions."""
    regime: Regime = "one-start"
    """one-start: members fine-tuned from common weights; independent: each from its
    own random weights."""
    seed: int = 0
    """Seed of everything."""
    quiet: bool = False
    """Show no progress."""
    overwrite: bool = False
    """Replace the folder if it exists."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Demo, arguments, "demo")
    began = time.monotonic()
    torch.set_num_threads(1)  # for networks this small a second thread only waits
    story = Story(regime=options.regime)
    out, overwrite = options.out, options.overwrite
    with (
        run_folder(out, options, overwrite=overwrite, extra={}) as run,
        tempfile.TemporaryDirectory() as cache,
        RunLog(run.own / "log.jsonl", quiet=options.quiet) as log,
    ):
        folder = run.own
        data = story.load(options.seed)
        running = RunOptions(seed=options.seed, device="cpu", cache=Path(cache))
        session = open_session(running, data, folder, log)
        command = command_line("demo", arguments)
        reports = tell(story, session, folder, command)
        session.clear_checkpoints()
        seconds = round(time.monotonic() - began, 2)
        write_report(folder / "report.json", Rows(rows=reports, seconds=seconds))
        best = best_method(reports)[0]
        kept = folder / FOLDER / file_of(best.method["name"], best.stage)
        write_page(
            folder / "page.html",
            "metaensemble demo",
            reports,
            contrasts=contrasts(load_predictions(kept), data.test),
        )
    show(reports, out)
    print(f"{seconds:.0f} s; open {out / 'page.html'}")
