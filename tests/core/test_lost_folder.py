"""A working folder that is removed or replaced while its run goes on."""

import errno
import shutil
from pathlib import Path

import pytest

from metaensemble.core.errors import DiskError, InputError
from metaensemble.core.files import output_folder, partial_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lose(out: Path, *, replace: bool) -> None:
    with output_folder(out, "", overwrite=False) as working:
        write_text(working / "first", "1")
        shutil.rmtree(working)
        if replace:
            working.mkdir()
        write_text(working / "second", "2")


@pytest.mark.parametrize("replace", [False, True])
def test_a_working_folder_that_is_removed_ends_the_run(tmp_path: Path, replace: bool):
    out = tmp_path / "run"
    message = f"{partial_folder(out)} must stay while its run goes on, but was removed"
    with pytest.raises(DiskError, match=message):
        lose(out, replace=replace)
    assert names(tmp_path) == [".run.partial"] * replace
    with output_folder(out, "", overwrite=False):
        pass


def test_a_working_folder_that_is_removed_last_gives_no_output(tmp_path: Path):
    out = tmp_path / "run"
    with (
        pytest.raises(DiskError, match="must stay while its run goes on"),
        output_folder(out, "", overwrite=False) as working,
    ):
        shutil.rmtree(working)
    assert names(tmp_path) == []


def test_other_writers_in_a_working_folder_are_told_of_it_too(tmp_path: Path):
    def write(error: OSError | None) -> None:
        with output_folder(tmp_path / "run", "", overwrite=False) as working:
            if error:
                raise error
            shutil.rmtree(working)
            (working / "log.jsonl").open("a")

    with pytest.raises(DiskError, match="must stay while its run goes on"):
        write(None)
    with pytest.raises(DiskError, match="log must be written, but its disk is full"):
        write(OSError(errno.ENOSPC, "full", "log"))
    with pytest.raises(PermissionError):  # of reading, perhaps
        write(PermissionError(errno.EACCES, "no", "member.pt"))


def test_refused_input_is_told_where_the_folder_is_removed_for_it(tmp_path: Path):
    def refuse() -> None:
        with output_folder(tmp_path / "run", "", overwrite=False) as working:
            shutil.rmtree(working)
            raise InputError("this value is wrong")

    with pytest.raises(InputError, match="this value is wrong"):
        refuse()
    assert names(tmp_path) == []
