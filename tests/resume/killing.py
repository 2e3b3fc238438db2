"""Kills a command at a random moment, repeats it, and compares what comes out."""

import json
import shutil
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from metaensemble.core.files import STAMP, partial_folder, sha256_of
from metaensemble.core.states import load_state
from tests.resume.commands import Command
from tests.resume.launching import Launcher, Run, send

AGAIN = 0.3
"""Share of the draws in which the repeated command is killed, too."""


@dataclass(frozen=True)
class Reference:
    """A command that nobody disturbed."""

    content: dict[str, str | None]
    """Of what it made: see `content`."""
    seconds: float
    """From the moment its work began to its end."""
    startup: float
    """Until then."""


@dataclass
class Kill:
    """One kill."""

    fraction: float
    """After which part of the undisturbed work's time, since this session began."""
    after_s: float = 0.0
    """Seconds since this session began its work."""
    ranks: tuple[int, ...] = (0,)
    """Which processes were killed."""


@dataclass
class Outcome:
    """What became of a command that was killed and repeated."""

    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What was not as it must be; empty for an equal result."""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Trainings that were taken up at a checkpoint: their name and step."""
    late: bool = False
    """The command had ended before a kill."""

    def row(self) -> dict[str, Any]:
        """Return the outcome as a row of the report."""
        first = self.kills[0] if self.kills else Kill(0.0)
        return {
            "killed_after_s": round(first.after_s, 3),
            "fraction": round(first.fraction, 4),
            "equal": not self.wrong,
            "resumed_from_step": self.resumed[-1]["step"] if self.resumed else None,
            "resumed": self.resumed,
            "kills": [asdict(kill) for kill in self.kills],
            "wrong": self.wrong,
        }


def undisturbed(
    command: Command, processes: int, launcher: Launcher, folder: Path, inputs: Path
) -> Reference:
    """Run a command in one go, in `folder`, which is made anew."""
    _anew(folder)
    started = time.monotonic()
    run = launcher.start(command.arguments(inputs), folder, processes)
    assert _begun(run, command, folder, None), run.said
    begun = time.monotonic()
    assert run.wait() == 0, run.said
    ended = time.monotonic()
    return Reference(content(folder), ended - begun, begun - started)


def kill_and_repeat(
    command: Command,
    processes: int,
    launchers: tuple[Launcher, Launcher],
    folder: Path,
    inputs: Path,
    reference: Reference,
    random: Random,
) -> Outcome:
    """Kill a command at a random moment, perhaps twice; repeat it to its end.

    Args:
        command: which.
        processes: how many.
        launchers: of the run that is killed, and of the repeated ones.
        folder: where; made anew.
        inputs: what the command reads.
        reference: the same command, undisturbed.
        random: draws the moments and the processes.
    """
    _anew(folder)
    outcome, left = Outcome(), reference.seconds
    moments = [random.random()]
    if random.random() < AGAIN:
        moments.append(random.random())
    for number, moment in enumerate(moments):
        ranks = tuple(range(processes))
        if processes > 1 and random.random() < 0.5:
            ranks = (random.randrange(processes),)
        told = random.random() < 0.5
        kill = Kill(moment * left / reference.seconds, ranks=ranks)
        before = _stamp(command, folder)
        run = launchers[number > 0].start(command.arguments(inputs), folder, processes)
        if not _begun(run, command, folder, before):
            outcome.wrong.append(f"it did not begin: {run.said}")
            return outcome
        begun = time.monotonic()
        time.sleep(moment * left)
        kill.after_s = time.monotonic() - begun
        run.kill(ranks)
        if processes > len(ranks) and told:  # as torchrun does
            time.sleep(0.1)
            for pid in run.ranks():
                send(pid, signal.SIGTERM)
        run.wait()
        outcome.kills.append(kill)
        if ended(command, folder):
            outcome.wrong += late(content(folder), reference.content)
            outcome.late = not outcome.wrong
            return outcome
        outcome.wrong += remains(command, folder)
        left -= moment * left
    run = launchers[1].start(command.arguments(inputs), folder, processes)
    if status := run.wait():
        outcome.wrong.append(f"repeated, it ended with {status}: {run.said}")
    outcome.wrong += differences(content(folder), reference.content)
    outcome.resumed = resumptions(folder / command.folder)
    return outcome


def content(folder: Path) -> dict[str, str | None]:
    """Return all names under `folder` but the cache's, hidden ones included.

    Of ``.safetensors`` with the hash of their bytes: they say nothing about times.
    """
    return {
        str(path.relative_to(folder)): sha256_of(path)
        if path.suffix == ".safetensors"
        else None
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] not in ("cache", "output.txt")
    }


def differences(
    found: dict[str, str | None], wanted: dict[str, str | None]
) -> list[str]:
    """Return what is not as it was undisturbed."""
    lacks = [f"{name} is missing" for name in wanted if name not in found]
    beyond = [f"{name} is left over" for name in found if name not in wanted]
    others = [
        f"{name} has other bytes"
        for name in found
        if name in wanted and found[name] != wanted[name]
    ]
    return [*lacks, *beyond, *others]


def late(found: dict[str, str | None], wanted: dict[str, str | None]) -> list[str]:
    """Return what is wrong with the output of a command killed as it ended.

    Between its folder's getting its name and its own end it holds a lock beside it, and
    the folder may still say whose it is.
    """
    bookkeeping = (".lock", STAMP)
    kept = {
        name: what for name, what in found.items() if not name.endswith(bookkeeping)
    }
    return differences(kept, wanted)


def ended(command: Command, folder: Path) -> bool:
    """Return whether a command has made its output, and nothing is left to do."""
    growing = partial_folder(folder / command.folder).exists()
    return (folder / command.out).exists() and not growing


def remains(command: Command, folder: Path) -> list[str]:
    """Return what a killed command has left that it must not."""
    out, working = folder / command.out, partial_folder(folder / command.folder)
    wrong = [f"{out.name} exists after the kill"] if out.exists() else []
    for path in working.rglob("*.safetensors"):
        if path.name.startswith("."):
            continue
        try:
            load_state(path)
        except Exception as error:
            wrong.append(f"{path.name} is broken after the kill: {error}")
    return wrong


def resumptions(folder: Path) -> list[dict[str, Any]]:
    """Return the trainings that a run took up at a checkpoint, as its logs tell."""
    found = []
    for path in sorted(folder.glob("log*.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        found += [
            {"what": event["what"], "step": event["step"]}
            for event in events
            if event["event"] == "resume"
        ]
    return found


def _anew(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _stamp(command: Command, folder: Path) -> int | None:
    """Return what changes when a command has taken up its working folder."""
    path = partial_folder(folder / command.folder) / "config.yaml"
    return path.stat().st_ino if path.exists() else None


def _begun(run: Run, command: Command, folder: Path, before: int | None) -> bool:
    """Wait until a command works; return False if it ends before."""
    out = folder / command.folder
    while True:
        if out.exists() or _stamp(command, folder) not in (None, before):
            return True
        if run.status() is not None:
            return out.exists()
        time.sleep(0.002)
