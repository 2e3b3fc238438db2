"""Full CIFAR-10 on a GPU: teachers beside the literature, ensembles, and students.

Command: .venv/bin/python benchmarks/gpu/run.py CIFAR10 WORK [--networks resnet20 ...]
(`make benchmarks-gpu DATA=CIFAR10 WORK=WORK`). WORK keeps zoos, caches and finished
rows: an interrupted call goes on, and several may share it, each with its own
--networks. With `digits --device cpu --epochs 1` it shows in minutes that it runs.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.files import write_json, write_text
from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.methods import Supervised
from metaensemble.metrics import measure
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.teach import teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/gpu/run.py"
REFERENCE = {
    "resnet20": (92.49, "giung2 ResNet20-BN, 200 epochs"),
    "vgg11_bn": (92.25, "giung2 VGG11-BN, 200 epochs"),
    "wrn28_4": (95.75, "giung2 WRN28x5, 200 epochs: wider"),
    "resnet50": (None, ""),
}
"""By network: one network's accuracy in the literature, and whose."""
MEMBERS = 4
SIZES = (1, 2, 4)
"""Of the ensembles that are measured; the mean over the first so many members."""
TEACHING: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd", "temperature": 4.0},
    "kd, scratch": {"name": "kd", "temperature": 4.0, "start": "scratch"},
    "latent": {"name": "latent_ensemble"},
    "latent, tdiv": {"name": "latent_ensemble", "perturbation": "tdiv_sdiv"},
    "weightformer": {"name": "weightformer", "refine": "regression_merge"},
}
"""By row: a method and what differs from its defaults; epochs are those of --epochs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10, in any layout that --data takes")
    parser.add_argument("work", type=Path, help="folder of zoos, caches and rows")
    parser.add_argument("--networks", nargs="+", default=list(REFERENCE))
    parser.add_argument("--epochs", type=float, default=200.0, help="of one member")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    data = load_data(options.data, unlabelled=False)
    rows: list[dict[str, Any]] = []
    for network in options.networks:
        with RunLog(quiet=True) as log, tempfile.TemporaryDirectory() as name:
            running = RunOptions(device=options.device, cache=options.work / "cache")
            session = open_session(running, data, Path(name), log)
            rows += measured(session, options, network)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    document = {"schema": 1, "study": "gpu", "device": device, "rows": rows}
    write_json(options.out / "report.json", document)
    write_text(options.out / "table.md", table(rows))


def measured(
    session: Session, options: argparse.Namespace, network: str
) -> list[dict[str, Any]]:
    """Return the rows of one network: ensembles of several sizes, then students."""
    zoo = options.work / "zoos" / network.replace(",", "-")
    teaching = Supervised(
        epochs=options.epochs, precision=options.precision, **TEACHING
    )
    zoo.mkdir(parents=True, exist_ok=True)

    def taught() -> list[dict[str, Any]]:
        with watched(options.device) as use:
            teach_members(
                session, zoo, architecture=network, members=MEMBERS, method=teaching
            )
        ensemble = load_ensemble([zoo], data=session.data)
        speed = {**use, "epoch": use["seconds"] / options.epochs / MEMBERS}
        return [sized(session, ensemble, count, network, speed) for count in SIZES]

    rows = kept(zoo / "members.json", taught)
    ensemble = load_ensemble([zoo], data=session.data)
    for key in options.students:
        path = zoo / f"student-{key.replace(', ', '-')}.json"
        rows += kept(path, lambda key=key: [student(session, ensemble, options, key)])
        print(network, key, rows[-1]["epoch"], "s per epoch", flush=True)
    return rows


def sized(
    session: Session, ensemble: Ensemble, count: int, network: str, speed: dict
) -> dict[str, Any]:
    """Return the figures of the mean of the first members; of one: of all in turn."""
    split = session.data.test
    labels = split.labels
    if count == 1:
        groups = [ensemble.subset([i]) for i in range(len(ensemble))]
    else:
        groups = [ensemble.subset(list(range(count)))]
    found = []
    for group in groups:
        logits = session.cache.ensemble_logits(group, split)
        found.append(measure(group.log_probs(logits), labels))
    name = "one member" if count == 1 else f"ensemble of {count}"
    figures = {
        figure: statistics.fmean(getattr(one, figure) for one in found)
        for figure in ("accuracy", "nll", "ece")
    }
    reference, whose = REFERENCE.get(network, (None, ""))
    said = {"reference": reference, "whose": whose} if count == 1 else {}
    shown = speed if count == 1 else {"epoch": None}
    return {"network": network, "row": name, **figures, **shown, **said}


def student(
    session: Session, ensemble: Ensemble, options: argparse.Namespace, key: str
) -> dict[str, Any]:
    """Return the figures of one student."""
    settings = {"epochs": options.epochs, "precision": options.precision}
    method = make_method(**{**settings, **STUDENTS[key]})
    with watched(options.device) as use:
        made = fuse_students(session, ensemble, method)[-1]
    report = measure_student(
        session, ensemble, made, command=COMMAND, method=method
    ).report
    session.clear_checkpoints()
    test = report.student.test
    images = max(1, made.train_images) / len(session.data.train)
    return {
        "network": ensemble.info.architecture,
        "row": key,
        "accuracy": test.accuracy,
        "nll": test.nll,
        "ece": test.ece,
        "recovered": report.headroom.recovered,
        "agreement": report.fidelity.agreement,
        **use,
        "epoch": use["seconds"] / images,
    }


def kept(path: Path, make: Any) -> list[dict[str, Any]]:
    """Return the rows in a file, or make and write them."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def watched(device: str) -> Iterator[dict[str, float]]:
    """Fill in the seconds of a block and, on a GPU, its use in percent and memory."""
    use: dict[str, float] = {}
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader"]
        while not ended.wait(2.0):
            said = subprocess.run(query, capture_output=True, text=True, check=False)
            if said.returncode:
                return
            samples.append(float(said.stdout.split()[0]))

    watcher = threading.Thread(target=watch, daemon=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        watcher.start()
    began = time.monotonic()
    yield use
    use["seconds"] = time.monotonic() - began
    ended.set()
    if device == "cuda":
        use["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        watcher.join()
        if samples:
            use["busy"] = statistics.fmean(samples)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown, the literature beside single networks."""
    lines = [
        "| network | | accuracy (%) | literature (%) | headroom (%) | NLL | ECE (%) "
        "| s per epoch | GPU busy (%) | peak (GB) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def cell(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    for row in rows:
        said = cell(row.get("reference"), 1, 2)
        cells = [
            cell(row["accuracy"], 100, 2),
            said if said == "-" else f"{said} ({row['whose']})",
            cell(row.get("recovered"), 100),
            cell(row["nll"], 1, 3),
            cell(row["ece"], 100),
            cell(row.get("epoch"), 1, 2),
            cell(row.get("busy")),
            cell(row.get("peak_gb"), 1, 2),
        ]
        lines.append(f"| {row['network']} | {row['row']} | {' | '.join(cells)} |")
    lines += ["", "*Test; one seed. A student's epoch: per pass over the data.*", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
