"""Two runs never write one output at a time, and a dead one hinders nobody."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from metaensemble.core import locks
from metaensemble.core.errors import InputError
from metaensemble.core.files import output_folder, partial_folder
from metaensemble.core.locks import held

HOLDER = """
import sys
from pathlib import Path
from metaensemble.core.files import output_folder
with output_folder(Path(sys.argv[1]), "seed: 0", overwrite=False) as working:
    (working / "a").write_text("1")
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def enter(out: Path, *, overwrite: bool = False) -> None:
    with output_folder(out, "seed: 0", overwrite=overwrite):
        pass


def test_a_second_run_is_refused_until_the_first_was_killed(tmp_path: Path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        who = f"process {process.pid} on {socket.gethostname()}"
        message = f"may write {out}, but {who} is at it; wait for it or choose another"
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message):
                enter(out, overwrite=overwrite)
        assert names(partial_folder(out)) == [".identity", "a"]
        process.kill()
    assert names(tmp_path) == [".run.lock", ".run.partial"]
    enter(out)
    assert names(tmp_path) == ["run"]
    assert names(out) == ["a"]


def test_one_process_does_not_write_an_output_twice_at_a_time(tmp_path: Path):
    out = tmp_path / "run"
    with output_folder(out, "seed: 0", overwrite=False):
        who = f"process {os.getpid()} on"
        with pytest.raises(InputError, match=f"only one run at a time .* but {who}"):
            enter(out)
        enter(tmp_path / "another")
    assert names(tmp_path) == ["another", "run"]


def test_a_lock_is_gone_after_an_error(tmp_path: Path):
    path = tmp_path / "lock"

    def stop() -> None:
        with held(path, tmp_path):
            assert path.read_text().startswith(f"process {os.getpid()} on ")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert names(tmp_path) == []


def test_a_lock_file_that_its_holder_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second opens the file, then the first ends, then the second locks."""
    path = tmp_path / "lock"
    calls = []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with held(path, tmp_path):
        assert len(calls) == 2
        assert path.exists()


def test_a_file_that_is_no_longer_the_lock_is_left_alone(tmp_path: Path):
    path = tmp_path / "lock"
    with held(path, tmp_path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize("missing", ["support", "module"])
def test_where_there_are_no_locks_that_is_said_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, missing: str
):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not here")

    if missing == "support":
        monkeypatch.setattr(fcntl, "flock", unsupported)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    enter(tmp_path / "run")
    told = capsys.readouterr().err
    assert told == (
        f"note: {tmp_path} knows no locks; start no second run into one folder\n"
    )
    assert names(tmp_path) == ["run"]


def test_another_failure_of_a_lock_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise OSError(errno.EBADF, "bad")

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(OSError, match="bad"), held(tmp_path / "lock", tmp_path):
        pass
