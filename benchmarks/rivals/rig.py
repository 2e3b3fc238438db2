"""Rivals' environments, and both sides' processes taking turns."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaensemble.core.files import write_text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 600
"""Seconds after which a process is stopped."""
OURS = "metaensemble"


class CannotRunError(RuntimeError):
    """A rival cannot be installed, or stops; the message is its last line."""


@dataclass(frozen=True)
class Side:
    """One of the two tools, and the Python that runs it."""

    name: str
    python: str
    version: str


class Rig:
    """Installs rivals below a folder, and runs tools in processes of one thread."""

    def __init__(self, work: Path, threads: int) -> None:
        self.work = work
        self.threads = threads
        self.installing = 0.0
        """Seconds spent on making environments."""
        self.ours = Side(OURS, sys.executable, _version(sys.executable, OURS))

    def rival(self, name: str, distribution: str | None = None) -> Side:
        """Return a rival, its environment made if it is not there.

        Raises:
            CannotRunError: pip could not install it; says why.
        """
        folder = self.work / "environments" / name
        python = str(folder / "bin" / "python")
        done = folder / "ready"
        wanted = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8")
        if not done.exists() or done.read_text(encoding="utf-8") != wanted:
            print(f"installing {name} into {folder}", flush=True)
            started = time.monotonic()
            _called([sys.executable, "-m", "venv", "--clear", str(folder)])
            command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
            command += ["-q", "-r", str(HERE / f"requirements-{name}.txt")]
            try:
                _called(command)
            finally:
                self.installing += time.monotonic() - started
            write_text(done, wanted)
        return Side(name, python, _version(python, distribution or name))

    def folder(self, question: str, case: str) -> Path:
        """Return the folder of a case, for inputs and what the tools write."""
        folder = self.work / question / case.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def empty(self, folder: Path) -> None:
        """Remove a case's large files."""
        for file in folder.rglob("*.safetensors"):
            file.unlink()

    def turns(
        self, question: str, folder: Path, rival: Side, repeats: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what our and the rival's processes printed, one per repeat.

        They take turns, and the one that goes first changes every time.

        Raises:
            CannotRunError: a process stopped, or took too long.
        """
        found: dict[str, list[dict[str, Any]]] = {self.ours.name: [], rival.name: []}
        for number in range(repeats):
            order = (self.ours, rival) if number % 2 == 0 else (rival, self.ours)
            for side in order:
                found[side.name].append(self.run(question, folder, side))
        return found[self.ours.name], found[rival.name]

    def run(self, question: str, folder: Path, side: Side) -> dict[str, Any]:
        """Return what one process printed, a JSON object on its last line."""
        threads = str(self.threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("PYTHONPATH", None)
        command = [side.python, str(HERE / f"{question}.py"), side.name, str(folder)]
        return json.loads(_called(command, environment).splitlines()[-1])


def _version(python: str, distribution: str) -> str:
    code = "import importlib.metadata, sys; "
    code += "print(importlib.metadata.version(sys.argv[1]))"
    return _called([python, "-c", code, distribution]).strip()


def _called(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"takes longer than {LIMIT} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line] or lines or ["no message"]
        raise CannotRunError(errors[-1].strip()[:300])
    return done.stdout
