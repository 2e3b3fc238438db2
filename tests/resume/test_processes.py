"""Two processes, as torchrun starts them, and what one process makes of the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metaensemble.cli import main
from metaensemble.core.states import load_state

TWO = "-m torch.distributed.run --standalone --nproc-per-node 2 -m -- metaensemble"
DATA = "--data digits --limit-train 60 --batch-size 16 --quiet"
FUSE = f"fuse zoo {DATA} --method kd --start scratch --epochs 4"


@pytest.fixture(autouse=True)
def _workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def zoo(make_member) -> None:
    for seed in range(3):
        make_member(Path(f"zoo/{seed}.safetensors"), seed, "convnet,width=4")


def together(line: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in two processes."""
    return subprocess.run(
        [sys.executable, *TWO.split(), *line.split()],
        env=os.environ,
        text=True,
        capture_output=True,
        timeout=200,
    )


def test_two_processes_are_one_that_accumulates_two_parts(zoo):
    assert main(f"{FUSE} --accumulate 2 --out one".split()) == 0
    done = together(f"{FUSE} --out two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to two") == 1
    one, two = (
        load_state(Path(f"{run}/student.safetensors"))[0] for run in ("one", "two")
    )
    for name, tensor in one.items():
        if "running" in name:  # of one process: moved twice a step
            torch.testing.assert_close(tensor, two[name], rtol=0.05, atol=0.05)
        elif "tracked" not in name:
            torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6)
    names = sorted(path.name for path in Path("two").iterdir())
    assert names == sorted([*(p.name for p in Path("one").iterdir()), "log.1.jsonl"])


@pytest.mark.slow
def test_members_are_shared_out_and_the_same(zoo):
    line = f"teach {DATA} --architecture convnet,width=4 --members 3 --epochs 3"
    assert main(f"{line} --out one".split()) == 0
    done = together(f"{line} --out two")
    assert done.returncode == 0, done.stderr
    for path in Path("one").glob("*.safetensors"):
        assert (Path("two") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_what_one_process_refuses_ends_all(zoo):
    done = together(f"{FUSE.replace('kd', 'crd')} --out two")
    assert done.returncode != 0
    assert "the batches of crd must stay whole" in done.stderr
    assert not Path("two").exists()
    done = together("evaluate zoo --data digits --limit-train 60 --quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ensemble") < 3  # said once


@pytest.mark.slow
def test_another_number_of_processes_is_another_run(zoo, capsys):
    Path(".two.partial").mkdir()
    identity = Path(".two.partial/.identity")
    long = FUSE.replace("--epochs 4", "--epochs 4000")
    process = subprocess.Popen(
        [sys.executable, *TWO.split(), *f"{long} --out two".split()],
        env=os.environ,
        stderr=subprocess.DEVNULL,
    )
    while not list(Path(".two.partial").glob("log*")):
        assert process.poll() is None
    process.terminate()
    process.wait(60)
    assert "processes: 2" in identity.read_text()
    assert main(f"{long} --out two".split()) == 2
    assert "'processes: 2' became 'processes: 1'" in capsys.readouterr().err
