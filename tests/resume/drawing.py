"""Fifty draws: which command is killed with how many processes, and the loop."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.resume.commands import COMMANDS, make_inputs
from tests.resume.killing import Outcome, Reference, kill_and_repeat, undisturbed
from tests.resume.launching import Forked, Fresh, Launcher

SEED = 0
ALONE, TOGETHER, FRESH = 28, 22, 2
"""Draws with one process, with two, and how many of all are started by torchrun."""
HASH_SEEDS = (1, 2)
"""Of the interpreters that start a command and repeat it; sets differ in order."""


@dataclass(frozen=True)
class Draw:
    """What is killed."""

    number: int
    """From 0."""
    command: str
    """Its name among `COMMANDS`."""
    processes: int
    """1 or 2."""
    fresh: bool = False
    """Whether torchrun starts it, rather than a fork."""


def planned(seed: int = SEED) -> list[Draw]:
    """Return all draws, in a random order; commands come up equally often."""
    random = Random(seed)
    found: list[tuple[str, int]] = []
    for processes, count in ((1, ALONE), (2, TOGETHER)):
        names = [n for n, c in COMMANDS.items() if processes in c.processes]
        chosen: list[str] = []
        while len(chosen) < count:
            chosen += random.sample(names, len(names))
        found += [(name, processes) for name in chosen[:count]]
    random.shuffle(found)
    together = [number for number, pair in enumerate(found) if pair[1] == 2]
    return [
        Draw(number, *pair, fresh=number in together[:FRESH])
        for number, pair in enumerate(found)
    ]


def drawn(
    draw: Draw,
    launchers: tuple[Launcher, Launcher],
    folder: Path,
    inputs: Path,
    reference: Reference,
    seed: int = SEED,
) -> tuple[Outcome, int]:
    """Make a draw, again if its kill came after the command's end; count them."""
    for attempt in itertools.count():
        outcome = kill_and_repeat(
            COMMANDS[draw.command],
            draw.processes,
            launchers,
            folder,
            inputs,
            reference,
            Random(f"{seed} {draw.number} {attempt}"),
        )
        if not outcome.late:
            return outcome, attempt + 1
    raise AssertionError


def outcomes(
    draws: Sequence[Draw], work: Path, seed: int = SEED
) -> Iterator[dict[str, Any]]:
    """Make the draws in the folder `work` and yield a row for each."""
    references: dict[tuple[str, int], Reference] = {}
    with ExitStack() as stack:
        first, second = (stack.enter_context(closing(Forked(s))) for s in HASH_SEEDS)

        def run(arguments: Sequence[str]) -> None:
            made = first.start(arguments, work / "inputs", 1)
            assert made.wait() == 0, made.said

        inputs = make_inputs(work / "inputs", run)
        for draw in draws:
            command, processes = COMMANDS[draw.command], draw.processes
            key = (draw.command, processes)
            if key not in references:
                references[key] = undisturbed(
                    command, processes, first, work / "whole", inputs
                )
            fresh = Fresh()
            outcome, attempts = drawn(
                draw,
                (fresh, fresh) if draw.fresh else (first, second),
                work / "draws" / f"{draw.number:02d}",
                inputs,
                references[key],
                seed,
            )
            yield {
                "draw": draw.number,
                "command": draw.command,
                "processes": processes,
                "launcher": "torchrun" if draw.fresh else "fork",
                **outcome.row(),
                "undisturbed_s": round(references[key].seconds, 3),
                "drawn": attempts,
            }
