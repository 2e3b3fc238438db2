"""A killed process leaves no output, and the same command ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metaensemble.cli import main
from metaensemble.core.files import partial_folder, sha256_of
from metaensemble.engine import RunLog, evaluate, fit
from metaensemble.methods import KD
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, load_member
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import exported, train

TEACH = (
    "teach --data digits --limit-train 60 --architecture convnet,width=4 --members 3 "
    "--epochs 60 --batch-size 16 --quiet"
)


@pytest.fixture(autouse=True)
def _workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    # sums over a batch depend on the number of threads
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.glob("*.safetensors")}


def kill_when_there(arguments: str, path: Path) -> None:
    """Start a command and kill it, as the kernel does, once `path` exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "metaensemble", *arguments.split()], env=os.environ
    )
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_teach_ends_in_the_same_bytes_after_a_kill():
    assert main(f"{TEACH} --out whole".split()) == 0

    out = Path("zoo")
    working = partial_folder(out)
    kill_when_there(f"{TEACH} --out zoo", working / "member-0000.safetensors")
    assert not out.exists()
    finished = sorted(hashes(working))
    assert "member-0000.safetensors" in finished
    assert len(finished) < 3
    for name in finished:  # what has its name is whole
        load_member(working / name)
    first = (working / "member-0000.safetensors").stat().st_mtime_ns
    (working / ".member-0001.safetensors.123.tmp").write_bytes(b"half written")

    assert main(f"{TEACH} --out zoo".split()) == 0
    assert not working.exists()
    assert hashes(out) == hashes(Path("whole"))
    assert (out / "member-0000.safetensors").stat().st_mtime_ns == first
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "log.jsonl",
        "member-0000.safetensors",
        "member-0001.safetensors",
        "member-0002.safetensors",
    ]


def test_a_kill_in_another_process_is_not_taken_for_our_run(capsys):
    working = partial_folder(Path("zoo"))
    short = TEACH.replace("--epochs 60", "--epochs 1")
    working.mkdir()
    (working / ".identity").write_text("data: elsewhere\n")
    assert main(f"{short} --out zoo".split()) == 2
    assert "can be resumed only with its own settings" in capsys.readouterr().err
    assert main(f"{short} --out zoo --overwrite".split()) == 0


def test_fuse_takes_up_its_checkpoint(make_member, digits, tmp_path):
    """Killing `fuse` in the middle: its checkpoint is written by hand, at step 5."""
    zoo = tmp_path / "zoo"
    for seed in range(2):
        make_member(zoo / f"{seed}.safetensors", seed, "convnet,width=4")
    line = (
        f"fuse {zoo} --data digits --limit-train 60 --method kd --start scratch "
        "--epochs 6 --batch-size 16 --quiet"
    )
    assert main(f"{line} --out whole".split()) == 0

    working = partial_folder(Path("run").absolute())
    log = working / "log.jsonl"
    kill_when_there(f"{line} --out run", log)
    assert not Path("run").exists()
    _train_until(5, zoo, digits, tmp_path / "cache", working)
    assert main(f"{line} --out run".split()) == 0
    assert '"event": "resume"' in (Path("run") / "log.jsonl").read_text()
    assert hashes(Path("run")) == hashes(Path("whole"))
    assert not list(Path("run").glob(".*"))


def _train_until(step: int, zoo: Path, digits, cache: Path, working: Path) -> None:
    """Do what `fuse` does up to a step, and leave its checkpoint in `working`."""
    members = tuple(load_member(path) for path in sorted(zoo.iterdir()))
    ensemble = Ensemble(members)
    method = KD(epochs=6, batch_size=16, start="scratch")
    session = open_session(
        RunOptions(device="cpu", cache=cache), digits, working, RunLog(quiet=True)
    )
    network = init_model("convnet,width=4", 10, digits.input_shape, session.seed)
    learner = method.learner(network, ensemble)
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*args, **options):
            return fit(*args, **options, stop_after=step)

        patch.setattr("metaensemble.workflows.students.fit", stopped)
        train(session, ensemble, method, learner, ensemble.info, "kd", 0)
    assert (working / ".kd.ckpt").exists()
    network = exported(session, learner, digits.normalization)
    assert evaluate(network, digits.normalization, digits.test).measured.count == 897
