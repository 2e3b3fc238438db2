"""One hot path, measured in a process of its own; prints a row as JSON.

Called by run.py.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).parent))
from paths import PASS, PATHS, Hot

REST = "outside of operators"
SHOWN = 8
TASKS = Path("/proc/self/task")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", choices=PATHS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--brief", action="store_true", help="seconds only")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        reused = options.path == "prediction"  # its members take a while to write
        hot = PATHS[options.path](options.work if reused else Path(scratch))
        hot.work()
        row = {
            "what": hot.what,
            "load": os.getloadavg()[0],
            "repeats": options.repeats,
            "seconds": repeated(hot.work, options.repeats),
        }
        if not options.brief:
            row |= details(hot, options.repeats)
    print(json.dumps(row))


def details(hot: Hot, repeats: int) -> dict[str, Any]:
    """Return the seconds of two threads, the floor and the operators."""
    torch.set_num_threads(2)
    both = repeated(hot.work, repeats)
    torch.set_num_threads(1)
    rate = matrix_rate()
    return {
        "seconds_of_two_threads": both,
        "multiply_adds": hot.multiply_adds,
        "matrix_rate": rate,
        "floor_seconds": {
            "multiply-adds": hot.multiply_adds / rate,
            "reading": PASS.read_once(list(hot.read)) if hot.read else 0.0,
        },
        "operators": operators(hot.work),
    }


def repeated(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return least and median seconds of the wall and of the processor, and the cores.

    `cores` is how many of them the process wanted on average: what its threads ran and
    what they waited for a core, over the wall's seconds. So neighbours do not show.
    """
    before, began = wanted(), time.perf_counter()
    runs = [PASS.timed(work) for _ in range(repeats)]
    cores = (wanted() - before) / (time.perf_counter() - began)
    walls, processors = zip(*runs, strict=True)
    return {
        "wall": min(walls),
        "median_wall": statistics.median(walls),
        "processor": min(processors),
        "median_processor": statistics.median(processors),
        "cores": cores,
    }


def wanted() -> float:
    """Return the seconds that this process's threads ran or waited for a core."""
    numbers = [path.read_text().split() for path in TASKS.glob("*/schedstat")]
    return sum(int(ran) + int(waited) for ran, waited, _ in numbers) / 1e9


def matrix_rate() -> float:
    """Return multiply-adds per second of the processor in a large product, one thread.

    Unlike the study of prediction's, this does not see the neighbours.
    """
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2048**3 / min(PASS.timed(lambda: a @ b)[1] for _ in range(10))


def operators(work: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the operators that take most of the time of a run, and the rest.

    By self time, of the faster of two profiled runs; what lies between operators
    (Python, NumPy, SciPy) counts as one.
    """
    best: tuple[float, Any] | None = None
    for _ in range(2):
        began = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            with record_function(REST):
                work()
            took = time.perf_counter() - began
        if best is None or took < best[0]:
            best = took, profiled.key_averages()
    assert best is not None
    events = sorted(best[1], key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    rows = [
        {
            "operator": event.key.removeprefix("aten::"),
            "share": event.self_cpu_time_total / whole,
            "calls": event.count,
        }
        for event in events[:SHOWN]
    ]
    return rows


if __name__ == "__main__":
    main()
