"""Matches pairs of networks with our matcher and with others, on the same weights.

Command: .venv/bin/python benchmarks/alignment/run.py --work /tmp/alignment \
    --rivals-python VENV/bin/python --git-re-basin FOLDER [--only PAIR...] \
    [--tools TOOL...] [--repeats 3]

README.md tells how to make VENV and FOLDER. Writes report.json and table.md; pairs that
are not named keep the rows they have.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metaensemble.alignment import save_spec, spec_for
from metaensemble.core.files import write_json, write_text
from metaensemble.core.seeds import generator
from metaensemble.core.states import State, load_state, save_state
from metaensemble.data import load_data
from metaensemble.models import init_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 600
"""Seconds after which a tool is stopped."""
REPEATED = 60
"""Runs shorter than so many seconds are repeated; the fastest counts."""
CLASSES = 10
PAIRS = {
    "resnet18 random": ("resnet18", (3, 32, 32)),
    "resnet18 trained": ("resnet18", (3, 16, 16)),
    "vgg16 random": ("vgg16", (3, 32, 32)),
    "resnet50 random": ("resnet50", (3, 32, 32)),
}
TOOLS = ("metaensemble", "git-re-basin-pytorch", "rebasin")


def make_pair(name: str, folder: Path) -> None:
    architecture, shape = PAIRS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for seed, which in enumerate("ab"):
        network = init_model(architecture, CLASSES, shape, seed)
        if name.endswith("trained"):
            accuracy = train(network, shape, seed)
            print(f"{name} {which}: test accuracy {accuracy:.3f}", flush=True)
        save_state(folder / f"{which}.safetensors", network.state_dict(), {})
    save_spec(folder / "spec.json", spec_for(network, shape))
    about = {"architecture": architecture, "classes": CLASSES, "shape": shape}
    write_json(folder / "pair.json", about)


def train(network: nn.Module, shape: tuple[int, int, int], seed: int) -> float:
    """Two epochs on the digits, blown up and grey in three channels; test accuracy."""
    data = load_data("digits")

    def batch(split, indices):
        images = data.normalization(split.batch(indices)).expand(-1, 3, -1, -1)
        images = F.interpolate(images, size=shape[1:], mode="bilinear")
        return images, split.labels[indices]

    optimizer = torch.optim.SGD(network.parameters(), 0.02, 0.9, weight_decay=5e-4)
    for epoch in range(2):
        order = torch.randperm(
            len(data.train), generator=generator(seed, "order", epoch)
        )
        for indices in order.split(64):
            images, labels = batch(data.train, indices)
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    with torch.no_grad():
        images, labels = batch(data.test, torch.arange(len(data.test)))
        return float((network.eval()(images).argmax(1) == labels).float().mean())


def run_tool(tool: str, folder: Path, options: argparse.Namespace) -> dict:
    """Return figures of the fastest run, or why there is none."""
    rival = tool != "metaensemble"
    command = [options.rivals_python if rival else sys.executable]
    command += [HERE / "match.py", tool, folder]
    if rival:
        command += ["--git-re-basin", options.git_re_basin]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    best: dict = {}
    for _ in range(options.repeats):
        try:
            done = subprocess.run(
                list(map(str, command)),
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return best or {"status": f"> {LIMIT} s"}
        if done.returncode:
            why = done.stderr.strip().splitlines() or ["no message"]
            return {"status": f"failed: {why[-1][:200]}"}
        figures = json.loads(done.stdout.splitlines()[-1])
        runs = best.get("runs", 0) + 1
        if not best or matching(figures) < matching(best):
            best = {"status": "ok", **figures}
        best["runs"] = runs
        if matching(figures) >= REPEATED:
            break
    return best


def matching(figures: dict) -> float:
    return figures["seconds"]["matching"]


def _processor(figures: dict) -> float:
    return figures["processor_seconds"]["matching"]


def judge(name: str, folder: Path, tool: str) -> dict:
    """Return the objective of a tool's result by our definition, and what it changed.

    The objective is the sum over all parameters of <A, P(B)>, in double precision.
    """
    architecture, shape = PAIRS[name]
    network = init_model(architecture, CLASSES, shape, 0).double().eval()
    states: dict[str, State] = {
        which: load_state(folder / f"{which}.safetensors")[0]
        for which in ("a", "b", tool)
    }
    parameters = [name for name, _ in network.named_parameters()]

    def objective(which: str) -> float:
        pairs = (
            (states["a"][n].double(), states[which][n].double()) for n in parameters
        )
        return sum(float((mine * theirs).sum()) for mine, theirs in pairs)

    def logits(which: str) -> torch.Tensor:
        state = {
            n: t.double() if t.is_floating_point() else t
            for n, t in states[which].items()
        }
        images = torch.randn(4, *shape, generator=generator("images")).double()
        with torch.no_grad():
            return functional_call(network, state, (images,))

    change = (logits(tool) - logits("b")).abs().max() / logits("b").abs().max()
    return {
        "objective": objective(tool),
        "objective_at_identity": objective("b"),
        "logits_changed_by": float(change),
    }


def row_of(name: str, tool: str, folder: Path, options: argparse.Namespace) -> dict:
    network, weights = name.split()
    row = {"network": network, "weights": weights, "tool": tool}
    row |= run_tool(tool, folder, options)
    if row["status"] == "ok":
        row |= judge(name, folder, tool)
    if tool == "metaensemble" and row["status"] == "ok":
        row["version"] = version("metaensemble")
        command = [sys.executable, HERE / "match.py", tool, folder, "--profile"]
        # One thread: a second one that waits would count as work.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            list(map(str, command)),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        row["shares"] = json.loads(done.stdout)
    if tool == "git-re-basin-pytorch":
        row["version"] = options.git_re_basin_version
    return row


def table(rows: list[dict]) -> str:
    lines = [
        "| network | weights | tool | matching, s | with spec, s | processor, s | "
        "peak, MB | objective | at identity | logits change | slower by, wall | "
        "slower by, processor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['network']} | {row['weights']} | {row['tool']} |"
        if row["status"] != "ok":
            lines.append(f"{head} {row['status']} |" + " |" * 8)
            continue
        own = next(
            r
            for r in rows
            if r["tool"] == "metaensemble"
            and (r["network"], r["weights"]) == (row["network"], row["weights"])
        )
        wall = row["seconds"]
        lines.append(
            f"{head} {wall['matching']:.2f} | {sum(wall.values()):.2f} | "
            f"{row['processor_seconds']['matching']:.2f} | "
            f"{row['peak_memory_mb']:.0f} | {row['objective']:.1f} | "
            f"{row['objective_at_identity']:.1f} | {row['logits_changed_by']:.0e} | "
            f"{matching(row) / matching(own):.1f} | "
            f"{_processor(row) / _processor(own):.1f} |"
        )
    lines += [
        "",
        "| where our processor time goes | weights | assignment (scipy) | matrix "
        "products | reordering | copying | rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("shares"):
            cells = [f"{100 * share:.0f} %" for share in row["shares"].values()]
            names = f"{row['network']} | {row['weights']}"
            lines.append(f"| {names} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rivals-python", required=True)
    parser.add_argument("--git-re-basin", type=Path, required=True)
    parser.add_argument("--git-re-basin-version", default="5965f4e")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=list(TOOLS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    report = HERE / "report.json"
    known = json.loads(report.read_text())["rows"] if report.exists() else []
    rows = {(r["network"], r["weights"], r["tool"]): r for r in known}
    for name in options.only:
        folder = options.work / name.replace(" ", "_")
        if not (folder / "pair.json").exists():
            make_pair(name, folder)
        for tool in options.tools:
            row = row_of(name, tool, folder, options)
            print(json.dumps(row), flush=True)
            rows[row["network"], row["weights"], tool] = row
            order = [(*n.split(), t) for n in PAIRS for t in TOOLS]
            done = [rows[key] for key in order if key in rows]
            write_json(report, {"study": "alignment", "rows": done})
            write_text(HERE / "table.md", table(done))


if __name__ == "__main__":
    main()
