"""What checkpoints cost, and what bfloat16, compilation and division change.

Command: .venv/bin/python benchmarks/running/run.py
Writes report.json and table.md. About 12 minutes; the machine should be idle.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.files import write_json, write_text
from metaensemble.data import load_data
from metaensemble.engine import Checkpoints, RunLog, Saving, fit
from metaensemble.engine.checkpoint import Progress
from metaensemble.methods import KD, Batch, Supervised
from metaensemble.metrics import parameters
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.students import distil_student
from metaensemble.workflows.teach import teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/running/run.py"
NETWORKS = ("convnet,width=32", "vgg11_bn", "vit_b_32")
"""Of .1, 9 and 87 million parameters."""
BATCH = {"vit_b_32": 16}
"""Images per step; 128 for the others."""
SIZE = {"vit_b_32": 224}
"""Height and width; 32 for the others."""
SECONDS = 75.0
"""Of training, for each network."""
CHOICES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": True},
    "accumulate 2": {"accumulate": 2},
}
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(2)
    rows = [saving(network) for network in NETWORKS]
    rows += [row for seed in SEEDS for row in choices(seed)]
    document = {"schema": 1, "study": "running", "command": COMMAND, "rows": rows}
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))


class Timed(Checkpoints):
    """Checkpoints that count what saving takes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Saving())
        self.took: list[float] = []
        self.bytes = 0

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint."""
        began = time.monotonic()
        path = super().save(progress)
        self.took.append(time.monotonic() - began)
        self.bytes = path.stat().st_size
        return path


def saving(architecture: str) -> dict[str, Any]:
    """Train on random images for `SECONDS` with the default checkpoints."""
    size, count = SIZE.get(architecture, 32), BATCH.get(architecture, 128)
    network = init_model(architecture, 10, (3, size, size), 0)
    images = torch.randn(count, 3, size, size)
    labels = torch.arange(count) % 10

    def batch(step: int) -> Batch:
        return Batch(step, images, labels)

    def trained(steps: int, folder: Path) -> tuple[Timed, float]:
        method = Supervised(epochs=steps, batch_size=count, selection="best")
        checkpoints = Timed(folder / ".a.ckpt")
        with RunLog(quiet=True) as log:
            fitted = fit(
                method.learner(network, None),
                method,
                batch,
                1,
                seed=0,
                log=log,
                what=architecture,
                validate=lambda _: {"objective": 0.0},
                checkpoints=checkpoints,
            )
        return checkpoints, fitted.seconds

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as name:
        _, seconds = trained(4, Path(first))
        checkpoints, seconds = trained(round(SECONDS / seconds * 4), Path(name))
    # The last one, at the training's end, keeps a finished stage and is not repeated.
    *within, last = checkpoints.took
    return {
        "what": "checkpoints",
        "network": architecture,
        "parameters": parameters(network),
        "megabytes": checkpoints.bytes / 1e6,
        "seconds": seconds,
        "saves": len(within),
        "seconds_each": statistics.mean(checkpoints.took),
        "share": sum(within) / seconds,
        "last_seconds": last,
    }


def choices(seed: int) -> list[dict[str, Any]]:
    """Distil one ensemble of four in every way; return what came of it."""
    data = load_data("digits", seed=seed)
    rows = []
    with tempfile.TemporaryDirectory() as name, RunLog(quiet=True) as log:
        folder = Path(name)
        running = RunOptions(seed=seed, device="cpu", cache=folder / "cache")
        session = open_session(running, data, None, log)
        members = teach_members(
            session,
            folder,
            architecture="convnet,width=16",
            members=4,
            method=Supervised(epochs=8, learning_rate=0.1),
            command=COMMAND,
        )
        ensemble = Ensemble(tuple(members))
        for choice, settings in CHOICES.items():
            method = KD(start="scratch", epochs=20, **settings)
            student = distil_student(session, ensemble, method)
            report = measure_student(
                session, ensemble, student, command=COMMAND, method=method
            ).report
            test = report.student.test
            rows.append(
                {
                    "what": "choice",
                    "choice": choice,
                    "seed": seed,
                    "accuracy": test.accuracy,
                    "nll": test.nll,
                    "ece": test.ece,
                    "kl": report.fidelity.kl,
                    "train_seconds": student.train_seconds,
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return both halves in Markdown."""
    lines = [
        "| network | parameters | checkpoint (MB) | seconds each | saves in "
        f"{SECONDS:.0f} s | share of the time (%) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["what"] == "checkpoints":
            lines.append(
                f"| {row['network']} | {row['parameters']:,} | {row['megabytes']:.1f} "
                f"| {row['seconds_each']:.3f} | {row['saves']} "
                f"| {100 * row['share']:.2f} |"
            )
    lines += [
        "",
        "| kd, digits | accuracy (%) | NLL | ECE (%) | KL to the ensemble | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for choice in CHOICES:
        found = [row for row in rows if row.get("choice") == choice]
        cells = [
            spread([100 * row["accuracy"] for row in found], 2),
            spread([row["nll"] for row in found], 4),
            spread([100 * row["ece"] for row in found], 2),
            spread([row["kl"] for row in found], 4),
            spread([row["train_seconds"] for row in found], 1),
        ]
        lines.append(f"| {choice} | {' | '.join(cells)} |")
    lines += ["", "*Test, mean ± standard error over three seeds.*", ""]
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """Return the mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
