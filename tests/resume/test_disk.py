"""A disk that fails at any point of a command loses nothing and leaves nothing half."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from metaensemble.cli import main
from metaensemble.core.files import partial_folder
from metaensemble.core.locks import held
from metaensemble.teachers import Member

DATA = "--data digits --limit-train 60 --quiet"
SHORT = f"{DATA} --batch-size 16 --epochs 1"
TINY = "--width 8 --heads 1 --depth 1"
LINES = {
    "teach": f"teach {SHORT} --architecture mlp,width=8 --members 2 --out run",
    "soup": f"fuse zoo {DATA} --method soup --out run",
    "kd": f"fuse zoo {SHORT} --checkpoint-steps 2 --method kd --out run",
    "learn": f"learn-weightformer zoo {SHORT} --teachers 2 2 --hold-out 2 {TINY} "
    "--out run.safetensors",
    "predict": "predict zoo/0.safetensors zoo/1.safetensors --predictor wf.safetensors "
    "--quiet --out run",
    "evaluate": f"evaluate zoo {DATA} --json run.json",
}
RESULTS = ("run", "run.safetensors", "run-training", "run.json")
OLD = {"report.json": b"old", "student.safetensors": b"older bytes"}


@pytest.fixture
def zoo(
    make_member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """The current folder, with ``zoo``, a folder of four members, in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", "cache")
    monkeypatch.setenv("COLUMNS", "100")
    first = make_member(tmp_path / "zoo/0.safetensors", 0)
    for seed in (1, 2, 3):
        make_member(tmp_path / f"zoo/{seed}.safetensors", seed, start=first)
    return tmp_path / "zoo"


def content(*paths: str) -> dict[str, bytes]:
    """Return the bytes of all files in these files and folders."""
    files = [f for p in paths for f in (Path(p), *Path(p).rglob("*")) if f.is_file()]
    return {str(path): path.read_bytes() for path in files}


def lasting(results: dict[str, bytes]) -> dict[str, bytes | None]:
    """Return names, and the bytes where they say nothing about times."""
    same = (".safetensors", "config.yaml")
    return {
        name: data if name.endswith(same) else None for name, data in results.items()
    }


def litter() -> list[str]:
    """Return what is neither in an output nor may be taken up by the same command."""
    found = re.compile(r"\..*\.(tmp|old|lock)|\.tmp\w+")
    return [str(path) for path in Path().rglob(".*") if found.fullmatch(path.name)]


def set_back(old: bool) -> None:
    """Remove what commands made; with `old`, the outputs are those of an older run."""
    for path in (
        *map(Path, RESULTS),
        Path("cache"),
        *map(partial_folder, map(Path, RESULTS)),
    ):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    if old:
        for name in ("run", "run-training"):
            Path(name).mkdir()
            for file, data in OLD.items():
                (Path(name) / file).write_bytes(data)
        Path("run.safetensors").write_bytes(b"old predictor")
        Path("run.json").write_bytes(b"old figures")


class Failing:
    """A disk that is full at the n-th time that something is made sure of or named."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.count = at, 0
        for name in ("fsync", "replace", "rename"):
            patch.setattr(os, name, self._counting(getattr(os, name)))

    @property
    def reached(self) -> bool:
        return self.count >= self.at

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return counted


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one error that was told."""
    told = capsys.readouterr().err
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told
    return lines[0]


def undisturbed(line: str) -> tuple[dict[str, bytes | None], list[int]]:
    """Return what a command makes where the disk is sound, and the sizes of files."""
    set_back(old=False)
    assert main(f"{line} --overwrite".split()) == 0
    made = content(*RESULTS)
    return lasting(made), [len(b) for b in {**made, **content("cache")}.values()]


def survives(
    line: str, status: int, whole: dict[str, bytes | None], before: dict[str, bytes]
) -> None:
    """Check that the old output is there, or all of the new, and how it goes on."""
    own = {
        name
        for name in before
        if name.split("/")[0] in {n.split("/")[0] for n in whole}
    }
    assert not litter()
    if status == 0:
        assert (
            lasting({n: b for n, b in content(*RESULTS).items() if n in whole}) == whole
        )
        return
    assert status == 2
    now = content(*RESULTS)
    # a predictor and its folder of logs are two outputs: the first may be done already
    changed = {name for name in own if now.get(name) != before[name]}
    assert changed <= {"run.safetensors"}
    assert all(now[name] == whole[name] for name in changed)
    assert main(f"{line} --overwrite".split()) == 0
    now = content(*RESULTS)
    assert lasting({n: b for n, b in now.items() if n in whole}) == whole
    assert not litter()
    assert not [p for p in RESULTS if partial_folder(Path(p)).exists()]


def fail_at(
    line: str,
    at: int,
    whole: dict[str, bytes | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> bool:
    """Return whether the n-th write was reached; it fails, and nothing is lost."""
    set_back(old=True)
    before = content(*RESULTS)
    with monkeypatch.context() as patch:
        disk = Failing(patch, at)
        status = main(f"{line} --overwrite".split())
    if status:
        told = sentence(capsys)
        assert "must be written, but its disk is full; free space and repeat" in told
    survives(line, status, whole, before)
    return disk.reached


@pytest.fixture
def with_predictor(zoo: Path) -> None:
    """``wf.safetensors``, a predictor, lies in the current folder."""
    assert main(LINES["learn"].replace("run.", "wf.").split()) == 0


@pytest.mark.parametrize(("name", "at"), [("teach", 8), ("evaluate", 5)])
@pytest.mark.usefixtures("zoo")
def test_a_full_disk_at_one_write_loses_nothing(name, at, monkeypatch, capsys):
    whole, _ = undisturbed(LINES[name])
    capsys.readouterr()
    assert fail_at(LINES[name], at, whole, monkeypatch, capsys)


@pytest.mark.usefixtures("zoo")
def test_a_lock_refuses_a_second_command_in_one_sentence(capsys):
    Path("run").mkdir()
    with held(Path(".run.lock").absolute(), Path("run")):
        assert main(f"{LINES['teach']} --overwrite".split()) == 2
    assert "but process" in (told := sentence(capsys))
    assert told.endswith("is at it; wait for it or choose another --out")


@pytest.mark.parametrize("name", ["-a b", "gr\u00fcn\u96ea", ".run", "x" * 255])
@pytest.mark.usefixtures("zoo")
def test_any_name_will_do(name):
    line = ["evaluate", "zoo/0.safetensors", *DATA.split(), f"--json={name}"]
    assert main(line) == 0
    assert main(line) == 2
    assert main([*line, "--overwrite"]) == 0
    Path(name).unlink()
    line = [*LINES["teach"].removesuffix("run").split()[:-1], f"--out={name}/"]
    assert main(line) == 0
    assert sorted(path.name for path in Path(name).iterdir())[2:] == [
        "member-0000.safetensors",
        "member-0001.safetensors",
    ]
    assert not litter()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_only_what_writers_meet_is_told_of_errors_from_elsewhere(
    code, monkeypatch, capsys
):
    def fail(_: object) -> None:
        raise OSError(code, os.strerror(code), "/dev/stdout")

    monkeypatch.setattr("metaensemble.cli.methods.run", fail)
    if code == errno.EACCES:
        with pytest.raises(PermissionError):
            main(["methods"])
        return
    assert main(["methods"]) == 2
    assert "/dev/stdout must be written, but its disk is full" in sentence(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LINES))
@pytest.mark.usefixtures("with_predictor")
def test_a_full_disk_at_every_write_loses_nothing(name, monkeypatch, capsys):
    whole, _ = undisturbed(LINES[name])
    capsys.readouterr()
    at = 1
    while fail_at(LINES[name], at, whole, monkeypatch, capsys):
        at += 1
    assert at > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LINES))
@pytest.mark.usefixtures("with_predictor")
def test_a_limit_in_every_file_loses_nothing(
    name: str,
    no_file_above: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
):
    whole, sizes = undisturbed(LINES[name])
    capsys.readouterr()
    refused = 0
    for size in sorted({0, *(size - 1 for size in sizes)}):
        set_back(old=True)
        before = content(*RESULTS)
        with no_file_above(size):
            status = main(f"{LINES[name]} --overwrite".split())
        if status:
            refused += 1
            assert "but it would be larger than files may be here; raise" in sentence(
                capsys
            )
        survives(LINES[name], status, whole, before)
    assert refused


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Mount an empty file system of so many bytes at ``disk``, for root alone."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size: int) -> None:
        options = f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)
            mounted.clear()
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(place)

    if os.geteuid():
        pytest.skip("file systems cannot be mounted here")
    yield mount
    os.chdir(tmp_path)
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LINES))
@pytest.mark.usefixtures("with_predictor")
def test_a_small_disk_that_is_full_anywhere_loses_nothing(
    name, small_disk, tmp_path, capsys
):
    line = LINES[name].replace("zoo", "../zoo").replace("wf.", "../wf.")
    (tmp_path / "large").mkdir()
    os.chdir(tmp_path / "large")
    whole, sizes = undisturbed(line)
    capsys.readouterr()
    step = 8192 if sum(sizes) < 1 << 19 else 32768
    size = least = 32768  # room for the older run
    while True:
        small_disk(size)
        os.chdir(tmp_path / "disk")
        set_back(old=True)
        before = content(*RESULTS)
        status = main(f"{line} --overwrite".split())
        if status:
            assert "but its disk is full; free space" in sentence(capsys)
        now = content(*RESULTS)
        assert not litter()
        os.chdir(tmp_path)
        if status == 0:
            break
        assert status == 2
        assert {name: now[name] for name in before} == before
        size += step
    assert size > least
    assert lasting({n: b for n, b in now.items() if n in whole}) == whole
