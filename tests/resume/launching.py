"""Starting commands, with one process or two, so that they can be killed.

`Fresh` starts them as users do: ``python -m metaensemble``, or torchrun. `Forked` forks
them from a process that has imported everything, which takes seconds less each; two of
them get the variables that torchrun would set.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

PATIENCE = 120.0
"""Seconds after which a process that should have ended is called hung."""
TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2 -m --".split()


class HungError(AssertionError):
    """A process did not end."""


class Run:
    """A command under way.

    Args:
        ranks: returns the processes that work; there may be none yet.
        others: returns what else belongs to the run, such as torchrun itself.
        status: returns the exit status, None while a process lives.
        output: the file that gets what they say.
    """

    def __init__(
        self,
        ranks: Callable[[], list[int]],
        others: Callable[[], list[int]],
        status: Callable[[], int | None],
        output: Path,
    ) -> None:
        self.ranks, self.others, self.status = ranks, others, status
        self.output = output

    def kill(self, ranks: Sequence[int]) -> None:
        """Send SIGKILL to ranks, by number; to everything if they are all."""
        pids = self.ranks()
        chosen = [pid for number, pid in enumerate(pids) if number in ranks]
        if len(chosen) == len(pids):
            chosen = [*self.others(), *chosen]
        for pid in chosen:
            send(pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit status, once all have ended.

        Raises:
            HungError: some do not; they are killed.
        """
        deadline = time.monotonic() + PATIENCE
        while (status := self.status()) is None:
            if time.monotonic() > deadline:
                self.kill(range(len(self.ranks())))
                raise HungError(f"a process went on for {PATIENCE:.0f} s: {self.said}")
            time.sleep(0.01)
        return status

    @property
    def said(self) -> str:
        """Return the last lines of what was said."""
        text = self.output.read_text(encoding="utf-8", errors="replace")
        return " | ".join(text.strip().splitlines()[-5:])


class Launcher(Protocol):
    """Starts commands."""

    def start(self, arguments: Sequence[str], folder: Path, processes: int) -> Run:
        """Start a command in `folder`."""
        ...


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a command that runs in `folder`."""
    # Sums depend on the number of threads.
    return {"OMP_NUM_THREADS": "1", "METAENSEMBLE_CACHE": str(folder / "cache")}


class Fresh:
    """Starts new interpreters; two processes through torchrun."""

    def start(self, arguments: Sequence[str], folder: Path, processes: int) -> Run:
        """Start a command in `folder`."""
        output = folder / "output.txt"
        module = [*(TORCHRUN if processes > 1 else []), "metaensemble"]
        with output.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, *arguments],
                cwd=folder,
                env={**os.environ, **environment(folder)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        if processes == 1:
            return Run(lambda: [process.pid], lambda: [], process.poll, output)
        known: list[int] = []

        def ranks() -> list[int]:
            known[:] = known if len(known) == processes else children(process.pid)
            return known

        def status() -> int | None:
            ended = process.poll()
            return None if any(lives(pid) for pid in known) else ended

        return Run(ranks, lambda: [process.pid], status, output)


class Forked:
    """Forks commands from a process that has imported all they need.

    Args:
        seed: of the hashes of that interpreter; sets have another order with another.
    """

    def __init__(self, seed: int = 0) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process that forks."""
        for stream in (self._server.stdin, self._server.stdout):
            if stream:
                stream.close()
        self._server.wait()

    def start(self, arguments: Sequence[str], folder: Path, processes: int) -> Run:
        """Start a command in `folder`."""
        output = folder / "output.txt"
        port = str(_free_port())
        pids = [
            self._ask(
                "start",
                arguments=list(arguments),
                folder=str(folder),
                output=str(output),
                variables=environment(folder)
                | (_rank(rank, processes, port) if processes > 1 else {}),
            )
            for rank in range(processes)
        ]
        ended: dict[int, int] = {}

        def status() -> int | None:
            for pid in pids:
                if pid not in ended:
                    found = self._ask("poll", pid=pid)
                    if found is not None:
                        ended[pid] = found
            return max(map(abs, ended.values())) if len(ended) == len(pids) else None

        return Run(lambda: pids, lambda: [], status, output)

    def _ask(self, what: str, **fields: object) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"what": what, **fields}) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that forks has ended; its standard error says why"
        return json.loads(answer)


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def lives(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    found = _stat(pid)
    return found is not None and found[0] != "Z"


def children(pid: int) -> list[int]:
    """Return the ranks that the torchrun process `pid` has started, in their order."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            if stat[1] == str(pid) and "metaensemble" in _command(entry):
                found.append(int(entry.name))
    return sorted(found)


def _command(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str] | None:
    """Return a process's state, parent and what follows, None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _rank(rank: int, processes: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
