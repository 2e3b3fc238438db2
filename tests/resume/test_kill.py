"""A killed process leaves no output, and the same command ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.cli import main
from metaensemble.core.files import partial_folder, sha256_of
from metaensemble.engine import Fitted, fit
from metaensemble.report import read_report
from metaensemble.teachers import load_member
from metaensemble.workflows.options import Session

TEACH = (
    "teach --data digits --limit-train 60 --architecture convnet,width=4 --members 3 "
    "--epochs 30 --batch-size 16 --quiet"
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


def test_a_working_folder_of_other_settings_is_not_taken_up(capsys):
    working = partial_folder(Path("zoo"))
    short = TEACH.replace("--epochs 30", "--epochs 1")
    working.mkdir()
    (working / ".identity").write_text("data: elsewhere\n")
    assert main(f"{short} --out zoo".split()) == 2
    assert "can be resumed only with its own settings" in capsys.readouterr().err
    assert main(f"{short} --out zoo --overwrite".split()) == 0


SMALL = "--width 8 --heads 1 --depth 1 --dropout 0.2"
FUSE = "fuse zoo --data digits --limit-train 60 --batch-size 16 --quiet"


@pytest.mark.parametrize(
    ("line", "module", "calls"),
    [
        (f"{FUSE} --method kd --start scratch --epochs 6", "students", 1),
        (f"{FUSE} --method weightformer {SMALL} --epochs 3", "students", 1),
        (f"{FUSE} --method weightformer {SMALL} --epochs 3", "students", 2),
        (TEACH.replace("--epochs 30", "--epochs 6"), "teach", 1),
        (TEACH.replace("--epochs 30", "--epochs 6"), "teach", 3),
    ],
    ids=["kd", "generator", "tuning", "first member", "last member"],
)
def test_an_interrupted_training_is_taken_up_at_its_checkpoint(
    make_member, monkeypatch, capsys, line, module, calls
):
    """The training of the given number is left at step 5, as by control-C."""
    first = make_member(Path("zoo/0.safetensors"), 0, "convnet,width=4")
    make_member(Path("zoo/1.safetensors"), 1, "convnet,width=4", first)
    assert main(f"{line} --out whole".split()) == 0

    begun = []

    def interrupted(*arguments: Any, **options: Any) -> Fitted:
        begun.append(options["what"])
        if len(begun) < calls:
            return fit(*arguments, **options)
        fit(*arguments, **options, stop_after=5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"metaensemble.workflows.{module}.fit", interrupted)
        assert main(f"{line} --out run".split()) == 130
    assert "the same command continues the run" in capsys.readouterr().err
    assert not Path("run").exists()

    assert main(f"{line} --out run".split()) == 0
    log = [json.loads(row) for row in Path("run/log.jsonl").read_text().splitlines()]
    resumed = [row for row in log if row["event"] == "resume"]
    assert [row["what"] for row in resumed if row["step"] == 5] == begun[-1:]
    assert hashes(Path("run")) == hashes(Path("whole"))
    assert not [path.name for path in Path("run").iterdir() if path.name[0] == "."]
    if module == "students":
        costs = [read_report(Path(run)).cost for run in ("whole", "run")]
        assert costs[0].train_images == costs[1].train_images
        assert costs[0].teacher_images == costs[1].teacher_images


def test_an_interrupted_predictor_is_taken_up(make_member, monkeypatch):
    first = make_member(Path("zoo/0.safetensors"), 0)
    for seed in range(1, 5):
        make_member(Path(f"zoo/{seed}.safetensors"), seed, start=first)
    line = (
        f"learn-weightformer zoo --data digits --limit-train 60 --teachers 2 2 {SMALL} "
        "--hold-out 2 --batch-size 16 --epochs 4 --quiet"
    )
    assert main(f"{line} --out whole.safetensors".split()) == 0

    def interrupted(*arguments: Any, **options: Any) -> Fitted:
        fit(*arguments, **options, stop_after=7)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("metaensemble.workflows.students.fit", interrupted)
        assert main(f"{line} --out wf.safetensors".split()) == 130
    assert not Path("wf.safetensors").exists()
    assert main(f"{line} --out wf.safetensors".split()) == 0
    assert sha256_of(Path("wf.safetensors")) == sha256_of(Path("whole.safetensors"))


def test_a_predictor_that_was_written_before_the_kill_is_no_obstacle(
    make_member, monkeypatch
):
    first = make_member(Path("zoo/0.safetensors"), 0)
    for seed in range(1, 4):
        make_member(Path(f"zoo/{seed}.safetensors"), seed, start=first)
    line = (
        f"learn-weightformer zoo --data digits --limit-train 60 --teachers 2 2 {SMALL} "
        "--hold-out 2 --batch-size 16 --epochs 1 --quiet --out wf.safetensors"
    )

    def killed(session: Session) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "clear_checkpoints", killed)
        assert main(line.split()) == 130
    written = sha256_of(Path("wf.safetensors"))
    assert partial_folder(Path("wf-training")).exists()
    assert main(line.split()) == 0
    assert sha256_of(Path("wf.safetensors")) == written
    assert not partial_folder(Path("wf-training")).exists()
    assert main(line.split()) == 2
