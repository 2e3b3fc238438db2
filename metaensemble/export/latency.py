"""Milliseconds per image of a student and its ensemble, side by side."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from metaensemble.export.deployed import deployed
from metaensemble.export.formats import (
    Format,
    Runner,
    open_written,
    runner_in_torch,
    write_export,
)
from metaensemble.teachers import Member

WARMUP = 5
"""Calls before; the fastest says how many go into a block."""
BLOCK_SECONDS = 0.0002
"""What is faster is called several times in a row, so that the clock can tell. Short
against what interrupts a process, so that it meets few blocks."""
SECONDS = 2.0
"""Time for all turns."""
TURNS = 15, 1000
"""Fewest and most."""


def latencies(
    student: Member, teachers: Sequence[Member], format: Format, path: Path
) -> dict[str, dict[str, float]]:
    """Return the milliseconds for one image of student and ensemble per runtime.

    The ensemble is its members one after another. In the format's own runtime, members
    of one architecture are as many copies of one exported file: what the weights are
    does not change the time.

    Args:
        student: the member that was exported.
        teachers: the ensemble's members; empty leaves the ensemble out.
        format: of the export.
        path: the exported file.

    Returns:
        Runtime (``torch``, and the format unless it is ``safetensors``) to
        ``student``, ``ensemble`` (the sum over its members; medians) and ``ratio``.

    Raises:
        InputError: a teacher cannot be expressed in the format.
    """
    found: dict[str, dict[str, float]] = {}
    own = [runner_in_torch(deployed(m)) for m in (student, *teachers)]
    found["torch"] = _side_by_side(own, [student, *teachers])
    if format != "safetensors":
        with tempfile.TemporaryDirectory() as folder:
            own = _opened([student, *teachers], format, path, Path(folder))
        found[format] = _side_by_side(own, [student, *teachers])
    return found


def alternated_ms(
    calls: Sequence[Callable[[], object]], seconds: float = SECONDS
) -> list[list[float]]:
    """Return the wall times of each call in milliseconds, one per turn.

    After a warm-up they are timed in turns, so that what else the machine does meets
    them all alike.

    Args:
        calls: the works.
        seconds: for about so long, within `TURNS`.
    """
    counts, expected = [], 0.0
    for call in calls:
        call()
        once = max(min(_seconds(call, 1) for _ in range(WARMUP)), 1e-7)
        counts.append(math.ceil(BLOCK_SECONDS / once))
        expected += once * counts[-1]
    fewest, most = TURNS
    turns = min(most, max(fewest, round(seconds / expected)))
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(turns):
        for place in range(len(calls)):
            i = (turn + place) % len(calls)  # nobody always follows the same one
            times[i].append(1000 * _seconds(calls[i], counts[i]))
    return times


def _seconds(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _side_by_side(
    runners: Sequence[Runner], members: Sequence[Member]
) -> dict[str, float]:
    """Return the times of the first runner and of all others together.

    Each is timed by itself, and the others' medians are added up: timed as one, they
    would be interrupted more often than the one, whose ratio would look too good.
    """

    def call(run: Runner, member: Member) -> Callable[[], object]:
        image = torch.full((1, *member.info.input_shape), 0.5)
        return lambda: run(image)

    calls = [call(*pair) for pair in zip(runners, members, strict=True)]
    student, *others = (statistics.median(times) for times in alternated_ms(calls))
    if not others:
        return {"student": student}
    ensemble = sum(others)
    return {"student": student, "ensemble": ensemble, "ratio": student / ensemble}


def _opened(
    members: Sequence[Member], format: Format, path: Path, folder: Path
) -> list[Runner]:
    """Return what runs each member; the first one's file exists already."""
    files: dict[tuple[object, ...], Path] = {}
    runners = []
    for member in members:
        info = member.info
        graph = info.architecture, info.input_shape, len(info.classes)
        if graph not in files:
            files[graph] = folder / str(len(files)) if files else path
            if files[graph] != path:
                write_export(format, files[graph], member)
        runners.append(open_written(format, files[graph], info.architecture))
    return runners
