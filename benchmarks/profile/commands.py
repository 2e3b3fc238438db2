"""How many cores the long commands want; each is run once, short, with two threads."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthetic import write_cifar

WINDOW, POLL = 1.0, 0.05
IMAGES, TEST = 2500, 5000


def rows(work: Path) -> list[dict[str, Any]]:
    """Run the commands on random images in CIFAR's format and return a row of each."""
    data = str(write_cifar(work / "cifar", IMAGES, TEST))
    zoo, predictor = str(work / "zoo"), str(work / "predictor.safetensors")
    shared = ["--data", data, "--overwrite", "--quiet", "--cache", str(work / "cache")]
    many = ["--architecture", "convnet,width=32", "--members", "6"]
    commands = [
        ["teach", *shared, *many, "--epochs", "1", "--out", zoo],
        ["fuse", zoo, *shared, "--method", "kd", "--epochs", "5", "--out"],
        ["learn-weightformer", zoo, *shared, "--epochs", "4", "--out", predictor],
        ["predict", zoo, *shared, "--predictor", predictor, "--out"],
        ["evaluate", zoo, "--data", data, "--cache", str(work / "another")],
    ]
    for command in commands:
        if command[-1] == "--out":
            command.append(str(work / command[0]))
    return [watched(command) for command in commands]


def watched(command: list[str]) -> dict[str, Any]:
    """Return the cores that a command wants: its threads' running and waiting.

    `busy_half`: of the busier half of its seconds, so that the start of Python, which
    is one thread's, does not count.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "metaensemble", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
    ) as process:
        marks, spent = [(began, 0.0)], dict[str, float]()
        while process.poll() is None:
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                try:
                    ran, waited, _ = (task / "schedstat").read_text().split()
                except (OSError, ValueError):  # the thread has ended
                    continue
                spent[task.name] = (int(ran) + int(waited)) / 1e9
            now = time.perf_counter()
            if now - marks[-1][0] >= WINDOW:
                marks.append((now, sum(spent.values())))
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed")
    seconds = time.perf_counter() - began
    windows = sorted(
        (b - a) / (later - earlier) for (earlier, a), (later, b) in pairwise(marks)
    )
    half = windows[len(windows) // 2 :]
    return {
        "kind": "command",
        "command": command[0],
        "seconds": seconds,
        "cores": sum(spent.values()) / seconds,
        "busy_half": sum(half) / max(1, len(half)),
    }
