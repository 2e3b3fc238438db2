"""How time and memory grow: with teachers, width, depth and images.

Command: .venv/bin/python benchmarks/scaling/run.py --work FOLDER [--only CURVE...]

Writes report.json, table.md and the figures time.svg and memory.svg. Curves that are
not named keep their rows. About 8 minutes, 2 GB of disk.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from metaensemble.core.files import write_json, write_text
from metaensemble.report.drawing import MARKERS, SERIES, STYLE, svg_of

HERE = Path(__file__).parent
ROUNDS = 1
"""Processes per point; the fastest counts."""


@dataclass(frozen=True)
class Curve:
    """One sweep; each point is (x, architecture, size handed to measure.py)."""

    what: str
    against: str
    of: str
    points: tuple[tuple[float, str, int], ...]


def sizes(architecture: str, *numbers: int) -> tuple[tuple[float, str, int], ...]:
    return tuple((number, architecture, number) for number in numbers)


CURVES = {
    "predict-teachers": Curve(
        "predict", "teachers", "ResNet-50", sizes("resnet50", 2, 4, 8, 16)
    ),
    "predict-width": Curve(
        "predict",
        "width",
        "convnet, 4 teachers",
        tuple((w, f"convnet,width={w}", 4) for w in (16, 32, 64, 128, 256)),
    ),
    "predict-depth": Curve(
        "predict",
        "layers",
        "ResNet-20 to -56, 4 teachers",
        tuple((d, f"resnet{d}", 4) for d in (20, 32, 56)),
    ),
    "kd-teachers": Curve(
        "kd",
        "teachers",
        "convnet of width 32, cached logits",
        sizes("convnet,width=32", 1, 2, 4, 8, 16),
    ),
    "match-width": Curve(
        "match", "width", "two convnets", sizes("convnet", 16, 32, 64, 128, 256, 512)
    ),
    "data-images": Curve(
        "data",
        "images",
        "in CIFAR's format",
        sizes("cifar", 1000, 2000, 5000, 10000, 20000, 60000),
    ),
    "zoo-members": Curve(
        "zoo",
        "members",
        "tiny ones: load, compute outputs",
        sizes("mlp,width=4", 10, 100, 1000),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES))
    options = parser.parse_args()
    report = HERE / "report.json"
    known = json.loads(report.read_text())["rows"] if report.exists() else []
    rows = {(row["curve"], row["x"]): row for row in known}
    for name in options.only:
        for x, architecture, size in CURVES[name].points:
            rows[name, x] = point(name, x, architecture, size, options.work)
            print(name, x, f"{rows[name, x]['seconds']:.3f} s", flush=True)
            order = [(c, p[0]) for c, curve in CURVES.items() for p in curve.points]
            save([rows[key] for key in order if key in rows])


def point(
    name: str, x: float, architecture: str, size: int, work: Path
) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "measure.py"), CURVES[name].what]
    command += [architecture, str(size), "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = []
    for _ in range(ROUNDS):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    best = min(runs, key=lambda run: run["seconds"])
    return {
        "curve": name,
        "x": x,
        "architecture": architecture,
        "processes": ROUNDS,
        **best,
    }


def save(rows: list[dict[str, Any]]) -> None:
    write_json(HERE / "report.json", {"schema": 1, "study": "scaling", "rows": rows})
    write_text(HERE / "table.md", table(rows))
    for field, file in (("seconds", "time.svg"), ("mb", "memory.svg")):
        write_text(HERE / file, drawn(rows, field) + "\n")


def of_curve(
    rows: list[dict[str, Any]], name: str, field: str
) -> tuple[list[float], list[float]]:
    """Return what was measured against x, where it was."""
    found = [row for row in rows if row["curve"] == name and field in row]
    return [row["x"] for row in found], [row[field] for row in found]


def exponent(x: list[float], y: list[float]) -> tuple[float, float]:
    """Return the slope of log y against log x and its standard error."""
    a, b = np.log(x), np.log(y)
    slope, start = np.polyfit(a, b, 1)
    left = b - slope * a - start
    spread = ((a - a.mean()) ** 2).sum()
    error = math.sqrt((left**2).sum() / (len(a) - 2) / spread)
    return float(slope), error


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Return what one more of x costs, and what none would, by least squares."""
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the fits and the points as Markdown."""
    lines = [
        "| curve | of | points | seconds ~ x^ | last two: x^ "
        "| memory ~ x^ | last two: x^ |",
        "|---|---|---|---|---|---|---|",
    ]
    points = [
        "",
        "| curve | x | seconds of one core | MB above start |",
        "|---" * 4 + "|",
    ]
    for name, curve in CURVES.items():
        x, y = of_curve(rows, name, "seconds")
        if len(x) < 3:
            continue
        cells = [_exponent(x, y), f"{_last(x, y):.2f}"]
        z, memory = of_curve(rows, name, "mb")
        cells += [_exponent(z, memory), f"{_last(z, memory):.2f}"] if z else ["", ""]
        label = f"{curve.what} against {curve.against}"
        span = f"{x[0]:g} to {x[-1]:g}"
        lines.append(f"| {label} | {curve.of} | {span} | {' | '.join(cells)} |")
        kept = dict(zip(z, memory, strict=True))
        points += [
            f"| {label} | {at:g} | {seconds:.4f} | "
            + (f"{kept[at]:.0f} |" if at in kept else "|")
            for at, seconds in zip(x, y, strict=True)
        ]
    return "\n".join([*lines, *points]) + "\n"


def _exponent(x: list[float], y: list[float]) -> str:
    slope, error = exponent(x, y)
    return f"{slope:.2f} ± {error:.2f}"


def _last(x: list[float], y: list[float]) -> float:
    """Return the exponent between the last two points."""
    return math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])


def drawn(rows: list[dict[str, Any]], field: str) -> str:
    """Return all curves of a figure, relative to their first points, as SVG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(CURVES.items()):
            x, y = of_curve(rows, name, field)
            if len(x) < 3:
                continue
            slope, error = exponent(x, y)
            label = f"{curve.what} against {curve.against}: {slope:.2f} ± {error:.2f}"
            axes.plot(
                [each / x[0] for each in x],
                [each / y[0] for each in y],
                marker=MARKERS[number],
                color=SERIES[number % len(SERIES)],
                linestyle="-" if number < len(SERIES) else "--",
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("times the smallest size")
        axes.set_ylabel("times its " + ("seconds" if field == "seconds" else "memory"))
        axes.grid(visible=True)
        if axes.lines:
            axes.legend(fontsize=9)
        return svg_of(figure, f"How {field} grow with size, with fitted exponents")


if __name__ == "__main__":
    main()
