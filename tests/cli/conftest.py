import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from metaensemble.cli import main
from metaensemble.teachers import Member


@dataclass(frozen=True)
class Done:
    """What a command line came to."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]
Refused = Callable[[str, str], None]
RUN_FILES = {
    "student.safetensors",
    "report.json",
    "card.md",
    "config.yaml",
    "log.jsonl",
    "page.html",
    "predictions",
}
"""What a run's folder holds."""


def files(folder: Path) -> set[str]:
    """Return the names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what several tests read."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def _workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Path) -> None:
    """Run in an empty folder, with one cache of teacher outputs for all tests."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(shared / "cache"))


@pytest.fixture(scope="session")
def zoo(make_member, shared: Path) -> Path:
    """A folder of five members of one start."""
    folder = shared / "zoo"
    first: Member = make_member(folder / "0.safetensors", 0)
    for seed in range(1, 5):
        make_member(folder / f"{seed}.safetensors", seed, start=first)
    return folder


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line, words apart by spaces, and return what it came to."""

    def run(line: str | Sequence[str]) -> Done:
        words = line.split() if isinstance(line, str) else list(line)
        capsys.readouterr()
        try:
            status = main(words)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder, with the time of its last change."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture
def refused(cli: Run) -> Refused:
    """Demand status 2, one sentence on standard error, and nothing written."""

    def check(line: str, message: str) -> None:
        before = listing(Path.cwd())
        done = cli(line)
        assert done.status == 2, done
        assert done.out == ""
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1, done.err
        assert re.search(message, done.err), done.err
        assert listing(Path.cwd()) == before

    return check


@pytest.fixture(scope="session")
def predictor(zoo: Path, shared: Path) -> Path:
    """A tiny predictor for members of the zoo."""
    out = shared / "wf.safetensors"
    line = (
        f"learn-weightformer {zoo} --data digits --limit-train 60 --teachers 2 2 "
        f"--hold-out 2 --width 8 --heads 1 --depth 1 --max-teachers 3 --epochs 1 "
        f"--cache {shared / 'cache'} --quiet --out {out}"
    )
    assert main(line.split()) == 0
    return out
