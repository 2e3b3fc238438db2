"""Starts the process that reads damaged files, and outlives it.

A read that ends the process, or does not end, is a fault of that read; the rest goes on
in a new process.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
READERS = (
    *("member", "bare safetensors", "pickled state dict", "legacy state dict"),
    *("predictor", "png folder", "jpeg folder", "webp folder", "tiff folder"),
    *("parquet", "cifar folder", "cifar tarball", "idx", "idx, gzipped"),
    *("yaml", "permutation spec", "report", "checkpoint"),
)
"""All that read what a stranger may have written."""
HOSTILE = 105
"""Hand-made cases, of the reader ``hostile``."""
PATIENCE = 60.0
"""Seconds without a word after which the process is stopped."""
START = 120.0
"""Seconds until its first word."""

Read = dict[str, Any]
"""How one read ended: reader, number, outcome (read, refused or fault), message,
seconds and memory_mb."""


def run(folder: Path, tasks: Sequence[tuple[str, int, int]]) -> list[Read]:
    """Return how all reads ended.

    Args:
        folder: to work in.
        tasks: reader, number of the first damage, count; a number says what is damaged.
    """
    left = [
        (reader, n)
        for reader, first, count in tasks
        for n in range(first, first + count)
    ]
    reads: list[Read] = []
    attempt = 0
    while left:
        attempt += 1
        place = folder / f"attempt {attempt}"
        place.mkdir()
        done, why = _watched(place, [(reader, n, 1) for reader, n in left])
        reads += done
        del left[: len(done)]
        if left:
            if not done and attempt > 1:
                raise RuntimeError(f"the process cannot start: {why}")
            if done or why:
                reader, number = left.pop(0)
                fault = {"outcome": "fault", "seconds": 0.0, "memory_mb": 0.0}
                reads.append(
                    {"reader": reader, "number": number, "message": why, **fault}
                )
    return reads


def _watched(
    folder: Path, tasks: Sequence[tuple[str, int, int]]
) -> tuple[list[Read], str]:
    """Return the reads of one process, and why it ended if before its time."""
    tasks_file = folder / "tasks.json"
    tasks_file.write_text(json.dumps(tasks), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(tasks_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        lines: Queue[str | None] = Queue()
        errors: list[str] = []

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        def collect() -> None:
            assert process.stderr is not None
            errors.extend(process.stderr)

        threads = [
            Thread(target=listen, daemon=True),
            Thread(target=collect, daemon=True),
        ]
        for thread in threads:
            thread.start()
        reads: list[Read] = []
        why = ""
        while True:
            try:
                line = lines.get(timeout=PATIENCE if reads else START)
            except Empty:
                process.kill()
                why = f"no end after {PATIENCE:.0f} s"
                break
            if line is None:
                break
            reads.append(json.loads(line))
        status = process.wait()
        for thread in threads:
            thread.join()
        if status < 0 and not why:
            why = f"the process was ended by {signal.Signals(-status).name}"
        elif status and not why:
            why = f"the process ended with status {status}: {''.join(errors)[-300:]}"
        return reads, why
