"""Measures one forward pass of a predictor for large networks: time, memory, profile.

Command: .venv/bin/python benchmarks/prediction/run.py --work /tmp/prediction \
    [--only CASE...] [--repeats 5] [--threads 2]

Writes report.json and table.md; cases that are not named keep the rows they have.
Expect some 10 minutes and 4 GB of disk; the machine should be idle.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.files import write_json, write_text
from metaensemble.core.seeds import generator, seeded
from metaensemble.data import Normalization
from metaensemble.models import init_model
from metaensemble.teachers import MemberInfo, save_member
from metaensemble.weightformer import (
    Predictor,
    PredictorInfo,
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
    save_predictor,
)

HERE = Path(__file__).parent
SHAPE = (3, 224, 224)
CLASSES = 1000
GENERATOR = WeightFormerConfig(
    width=64, depth=2, heads=2, reference="mean", readout="pooled", attention="axial"
)
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet50 N=2": ("resnet50", 2, {}),
    "resnet50 N=4": ("resnet50", 4, {}),
    "resnet50 N=5, one teacher more": ("resnet50", 5, {}),
    "resnet50 N=8": ("resnet50", 8, {}),
    "resnet50 N=4, first readout": ("resnet50", 4, {"readout": "first"}),
    "resnet50 N=4, full attention": ("resnet50", 4, {"attention": "full"}),
    "resnet50 N=4, width 128": ("resnet50", 4, {"width": 128, "heads": 4}),
    "resnet50 N=4, aligned": ("resnet50", 4, {"reference": "aligned_mean"}),
    "vit_b_32 N=2": ("vit_b_32", 2, {}),
    "vit_b_32 N=4": ("vit_b_32", 4, {}),
    "vit_b_32 N=8": ("vit_b_32", 8, {}),
}
"""Name: architecture, teachers, and what differs from `GENERATOR`."""


def info_of(architecture: str) -> MemberInfo:
    return MemberInfo(
        architecture=architecture,
        classes=tuple(str(i) for i in range(CLASSES)),
        input_shape=SHAPE,
        normalization=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
        start="random",
    )


def make_members(folder: Path, architecture: str, count: int) -> list[Path]:
    """Write networks with random weights; those that are there are kept."""
    paths = [folder / f"{architecture}-{seed}.safetensors" for seed in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            network = init_model(architecture, CLASSES, SHAPE, seed)
            save_member(path, network.state_dict(), info_of(architecture))
    return paths


def make_predictor(path: Path, architecture: str, fields: dict[str, Any]) -> None:
    """Write a generator that nobody trained, its decoders random instead of zero."""
    info = info_of(architecture)
    networks = [init_model(architecture, CLASSES, SHAPE, seed) for seed in range(2)]
    spec = derive_token_spec(networks[0], SHAPE)
    with seeded("generator"):
        network = WeightFormer(GENERATOR.model_copy(update=fields), spec)
    network.standardise([one.state_dict() for one in networks])
    random = generator("awake")
    with torch.no_grad():
        for tensor in network.decode.parameters():
            tensor.copy_(0.01 * torch.randn(tensor.shape, generator=random))
    aligned = fields.get("reference") == "aligned_mean"
    record = PredictorInfo(
        config=network.config,
        spec=spec,
        architecture=architecture,
        classes=info.classes,
        input_shape=SHAPE,
        normalization=info.normalization,
        trained_on=(),
    )
    frame = dict(networks[0].state_dict()) if aligned else None
    save_predictor(path, Predictor(network, record, frame))


def run_case(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    architecture, teachers, fields = CASES[name]
    members = make_members(arguments.work, architecture, teachers)
    predictor = arguments.work / f"{name.replace(' ', '-')}-predictor.safetensors"
    make_predictor(predictor, architecture, fields)
    files = [str(path) for path in members]
    threads = str(arguments.threads)
    load = os.getloadavg()[0]
    command = [sys.executable, str(HERE / "measure.py"), *files]
    command += ["--predictor", str(predictor), "--threads", threads]
    command += ["--repeats", str(arguments.repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    row = json.loads(done.stdout)
    out = arguments.work / "run"
    command = [sys.executable, "-m", "metaensemble", "predict", *files]
    command += ["--predictor", str(predictor), "--out", str(out), "--overwrite"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, str(HERE / "peak.py"), *command[1:]],
        check=True,
        env={**environment, "PEAK_FILE": str(arguments.work / "peak.json")},
    )
    seconds = time.perf_counter() - began
    peak = json.loads((arguments.work / "peak.json").read_text())
    row["command"] = {"seconds": seconds, **peak}
    predictor.unlink()
    return {
        "case": name,
        "architecture": architecture,
        "threads": arguments.threads,
        "load_before": load,
        **row,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | seconds | one thread, CPU s | floor: read + multiply | alignment s | "
        "peak above start / checkpoints | peak of the process, MB | "
        "whole command, s | its peak / checkpoints |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = row["floor_seconds"].values()
        checkpoints = row["checkpoints_mb"]
        aligned = row.get("alignment_seconds")
        command = row["command"]
        cells = [
            row["case"],
            f"{row['seconds']:.2f}",
            f"{row['one_thread_processor_seconds']:.2f}",
            " + ".join(f"{part:.2f}" for part in floor),
            "" if aligned is None else f"{aligned:.1f}",
            f"{row['peak_above_start_mb'] / checkpoints:.2f}",
            f"{row['peak_mb']:.0f} (checkpoints {checkpoints:.0f}, "
            f"generator {row['generator_mb']:.0f})",
            f"{command['seconds']:.1f}",
            f"{command['peak_mb'] / checkpoints:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Where the time goes, in % of the pass:", ""]
    parts = sorted({part for row in rows for part in row["profile_seconds"]})
    lines.append(f"| case | {' | '.join(parts)} |")
    lines.append("|---" * (len(parts) + 1) + "|")
    for row in rows:
        profile = row["profile_seconds"]
        whole = sum(profile.values())
        cells = [f"{100 * profile.get(part, 0) / whole:.0f}" for part in parts]
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = HERE / "report.json"
    known = json.loads(report.read_text())["rows"] if report.exists() else []
    rows = {row["case"]: row for row in known}
    for name in arguments.only:
        rows[name] = run_case(name, arguments)
        print(name, f"{rows[name]['seconds']:.2f} s", flush=True)
        ordered = [rows[case] for case in CASES if case in rows]
        write_json(report, {"study": "prediction", "rows": ordered})
        write_text(HERE / "table.md", table(ordered))


if __name__ == "__main__":
    main()
