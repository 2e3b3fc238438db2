"""One tool's answer to one question, in a process of its own; prints JSON.

The file of a question calls `main` with its tools. Nothing here, and nothing at the top
of those files, needs more than Python: rivals run them in their own environments, where
this project is not installed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tool = Callable[[Path], dict[str, Any]]
"""Reads a case's folder, and returns its figures."""


def main(tools: dict[str, Tool]) -> None:
    """Run one tool on one case: `python FILE TOOL FOLDER`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=tools)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    figures = tools[options.tool](options.folder)
    used = {"process_seconds": time.process_time(), "peak_mb": peak_mb()}
    print(json.dumps({**figures, **used}))


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Return the median seconds of a call after one that warms up, and its result.

    Seconds of the processor, here as in all files: with one thread they are those on
    the wall of an idle machine, and other work on the machine makes them little longer.
    """
    result = call()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = call()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


def peak_mb() -> float:
    """Return the peak resident memory of this process since it began (Linux)."""
    # Not getrusage: its peak is inherited from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")
