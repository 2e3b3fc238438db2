"""Members of your own network, from training to one fused network.

Run from this folder: python own_network.py. The commands import ``own_network:build``
because you name it; the current folder is on the import path.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from torch import nn


def build(
    classes: int, input_shape: tuple[int, int, int], width: int = 16
) -> nn.Module:
    """Return a small network; called by metaensemble with what it knows of the data."""
    channels, height, size = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * height * size, classes),
    )


def metaensemble(*arguments: object) -> None:
    """Run a command, as you would in a shell."""
    command = [sys.executable, "-m", "metaensemble", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


def main() -> None:
    """Teach three members, fuse them, and measure everything."""
    data = ("--data", "digits", "--limit-train", 300)
    network = ("--architecture", "own_network:build,width=16")
    with tempfile.TemporaryDirectory() as folder:
        zoo, run = Path(folder) / "zoo", Path(folder) / "run"
        metaensemble("teach", *data, *network, "--members", 3, "--out", zoo)
        metaensemble("fuse", zoo, "--method", "kd", *data, *network, "--out", run)
        student = run / "student.safetensors"
        metaensemble("evaluate", zoo, student, *data, *network)


if __name__ == "__main__":
    main()
