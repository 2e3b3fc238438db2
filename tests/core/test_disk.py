"""Disks that fail in many ways, and writers that tell of it in many others."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metaensemble.core import disk
from metaensemble.core.disk import beside, disk_error, disk_told, sync_folder, sync_tree
from metaensemble.core.errors import DiskError, InputError, MissingFileError
from metaensemble.core.files import atomic_path, claim_output, output_folder, write_text

Limit = Callable[[int], AbstractContextManager[None]]
TENSORS = {"a": torch.zeros(5000), "b": torch.zeros(5000)}


def save_numpy(path: Path) -> None:
    with path.open("wb") as handle:
        np.save(handle, np.zeros(10000), allow_pickle=False)


def save_torch(path: Path) -> None:
    with path.open("wb") as handle:
        torch.save(TENSORS, handle)


WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": save_torch,
    "safetensors": lambda path: save_file(TENSORS, path),
    "numpy": save_numpy,
    "text": lambda path: path.write_text("x" * 40000),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, writer: Callable[[Path], object]) -> None:
    with atomic_path(path) as temporary:
        writer(temporary)


@pytest.mark.parametrize("name", ["plain", "gr\u00fcn und \u96ea"])
@pytest.mark.parametrize("writer", list(WRITERS))
def test_every_writer_that_the_system_stops_is_told_in_one_sentence(
    tmp_path: Path, no_file_above: Limit, writer: str, name: str
):
    path = tmp_path / name
    write_text(path, "old")
    for limit in (0, 100, 9000):
        with (
            no_file_above(limit),
            pytest.raises(DiskError, match="but it would be larger than files") as told,
        ):
            write(path, WRITERS[writer])
        assert str(told.value).startswith(f"{path} must be written, but")
        assert "\n" not in str(told.value)
        assert path.read_text() == "old"
        assert names(tmp_path) == [name]
    write(path, WRITERS[writer])
    assert path.stat().st_size > 9000


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            errno.ENOSPC,
            "but its disk is full; free space and repeat the same command: ",
        ),
        (errno.EDQUOT, "but the quota of its disk is used up; free space"),
        (errno.EFBIG, r"but it would be larger than .*; raise the limit \(ulimit -f\)"),
        (errno.EROFS, "but its file system is read-only; choose another place"),
        (errno.EACCES, "but that is not allowed; choose another place, or allow it"),
        (errno.EPERM, "but that is not allowed"),
        (errno.ESTALE, "but its folder was removed; leave it alone and repeat"),
        (errno.ENOTDIR, "but a file lies where its folder must be; choose another pl"),
        (errno.EEXIST, "but a file lies where its folder must be"),
        (errno.EISDIR, "but a folder has its name; choose another name"),
        (errno.ENAMETOOLONG, "but its name is too long; choose a shorter one"),
        (errno.EIO, "but its disk fails .*; mend it and repeat"),
    ],
)
def test_what_went_wrong_is_said(tmp_path: Path, code: int, message: str):
    def fail() -> None:
        with disk_told(tmp_path / "file"):
            raise OSError(code, os.strerror(code))

    with pytest.raises(DiskError, match=f"file must be written, {message}"):
        fail()


def test_a_removed_folder_is_told_and_a_missing_file_is_not(tmp_path: Path):
    error = FileNotFoundError(errno.ENOENT, "gone")
    told = disk_error(error, tmp_path / "gone" / "file")
    assert "its folder was removed; leave it alone" in str(told)
    assert disk_error(error, tmp_path / "file") is None


@pytest.mark.parametrize(
    "error",
    [
        OSError("without a number"),
        OSError(errno.EBUSY, "busy"),
        RuntimeError("shapes differ"),
        InputError("a value is wrong"),
        MissingFileError("a file is missing"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception):
    probe = tmp_path / "probe"
    assert disk_error(error, tmp_path / "file", probe=probe) is None

    def fail(_: Path) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        write(tmp_path / "file", fail)
    assert raised.value is error
    probe.unlink(missing_ok=True)
    assert names(tmp_path) == []


def test_without_a_path_only_what_writers_meet_counts():
    full = disk_error(OSError(errno.ENOSPC, "full", "log.jsonl"))
    assert "log.jsonl must be written, but its disk is full" in str(full)
    nameless = disk_error(OSError(errno.ENOSPC, "full"))
    assert "what this command writes must be written" in str(nameless)
    assert disk_error(OSError(errno.EACCES, "input", "member.pt")) is None


def test_a_disk_error_is_bad_input_and_an_os_error():
    error = DiskError("a sentence")
    assert isinstance(error, InputError)
    assert isinstance(error, OSError)
    assert str(error) == "a sentence"
    assert str(DiskError()) == ""


def test_a_writer_that_does_not_say_why_is_followed_by_a_probe(
    tmp_path: Path, no_file_above: Limit, monkeypatch: pytest.MonkeyPatch
):
    """As torch does where the disk is full and its name is plain."""

    def fail(path: Path) -> None:
        path.touch()
        raise RuntimeError("unexpected pos 640 vs 598")

    for writer in (fail, lambda path: torch.save(TENSORS, path)):
        with no_file_above(10), pytest.raises(DiskError, match="larger than files may"):
            write(tmp_path / "file", writer)
    monkeypatch.setattr(disk, "PROBE", 10)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        write(tmp_path / "file", fail)
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="but a file lies where its folder must be"):
        write_text(tmp_path / "file" / "inside", "text")


def test_a_folder_in_place_of_the_file_is_told_and_kept(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskError, match="but a folder has its name"):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(not os.geteuid(), reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(DiskError, match="but that is not allowed"):
        write_text(tmp_path / "file", "text")
    with (
        pytest.raises(DiskError, match="but that is not allowed"),
        output_folder(tmp_path / "run", "", overwrite=False),
    ):
        pass
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "name", ["x" * 255, "\u96ea" * 85, "-", "...", "a b\n c"], ids=range(5)
)
def test_any_name_that_a_file_may_have_is_written(tmp_path: Path, name: str):
    path = tmp_path / name
    for writer in WRITERS.values():
        write(path, writer)
    assert names(tmp_path) == [name]
    path.unlink()
    with output_folder(path, "", overwrite=False) as working:
        write_text(working / "a", "1")
    with output_folder(path, "", overwrite=True) as working:
        write_text(working / "b", "1")
    assert names(tmp_path) == [name]
    assert names(path) == ["b"]


def test_a_name_that_is_too_long_is_told(tmp_path: Path):
    for path in (tmp_path / ("x" * 256), tmp_path / ("x" * 256) / "inside"):
        with pytest.raises(DiskError, match="but its name is too long; choose a sh"):
            write_text(path, "text")
        with pytest.raises(DiskError, match="but its name is too long"):
            claim_output(path, overwrite=False)
    assert names(tmp_path) == []


def test_a_name_beside_is_the_same_each_time_and_differs_between_paths():
    assert beside(Path("a/run"), "partial") == Path("a/.run.partial")
    first, second = Path("a" * 254 + "b"), Path("a" * 254 + "c")
    assert beside(first, "partial") == beside(first, "partial")
    assert beside(first, "partial") != beside(second, "partial")
    snow = beside(Path("\u96ea" * 85), "partial")
    assert 240 < len(os.fsencode(snow.name)) <= 255
    assert snow.name.endswith(".partial")


def test_files_and_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a", "1")
    file, folder = (path.stat().st_ino for path in (tmp_path / "a", tmp_path))
    assert synced == [file, folder]  # the name after the bytes
    (tmp_path / "sub").mkdir()
    sync_tree(tmp_path)
    assert {file, folder, (tmp_path / "sub").stat().st_ino} == set(synced[2:])
    sync_folder(tmp_path / "nowhere")  # cannot be told: nothing depends on it
