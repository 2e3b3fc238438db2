import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from metaensemble.core.errors import InputError
from metaensemble.core.files import (
    atomic_path,
    claim_output,
    output_folder,
    partial_folder,
    sha256_of,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("new, but unfin")
        raise KeyboardInterrupt


def interrupt(out: Path, identity: str) -> None:
    with output_folder(out, identity, overwrite=False) as working:
        (working / "a").write_text("1")
        raise KeyboardInterrupt


def test_a_file_is_written_into_folders_that_are_made(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "gr\u00fcn\n")
    assert path.read_bytes() == "gr\u00fcn\n".encode()
    assert names(path.parent) == ["b.txt"]


def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path: Path):
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["kept.txt"]


def test_the_old_content_stands_until_the_new_is_whole(tmp_path: Path):
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # a rename, not a copy across disks
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.touch()
    with atomic_path(ours) as temporary:
        temporary.touch(mode=0o600)
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_refuses_what_json_cannot_say(tmp_path: Path):
    path = tmp_path / "figures.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert names(tmp_path) == ["figures.json"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "bytes"
    path.write_bytes(b"abc")
    assert sha256_of(path) == hashlib.sha256(b"abc").hexdigest()


def test_claim_output_refuses_what_exists(tmp_path: Path):
    out = tmp_path / "run"
    claim_output(out, overwrite=False)
    out.mkdir()
    with pytest.raises(InputError, match=f"but {out} does; choose another --out or"):
        claim_output(out, overwrite=False)
    claim_output(out, overwrite=True)


def test_an_output_folder_appears_whole(tmp_path: Path):
    out = tmp_path / "deep" / "run"
    with output_folder(out, "seed: 0", overwrite=False) as working:
        (working / "a").write_text("1")
        assert not out.exists()
    assert names(out) == ["a"]
    assert names(out.parent) == ["run"]


def test_an_output_folder_does_not_appear_after_a_failure(tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out, "seed: 0")
    assert not out.exists()
    assert (partial_folder(out) / "a").read_text() == "1"


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """An output folder whose run stopped after writing ``a``."""
    out = tmp_path / "run"
    with suppress(KeyboardInterrupt):
        interrupt(out, "seed: 0\nepochs: 2")
    return out


def test_the_same_run_finds_its_files_again(interrupted: Path):
    identity = "seed: 0\nepochs: 2"
    with output_folder(interrupted, identity, overwrite=False) as working:
        assert (working / "a").read_text() == "1"
    assert names(interrupted) == ["a"]


def test_overwriting_resumes_the_same_run_too(interrupted: Path):
    identity = "seed: 0\nepochs: 2"
    with output_folder(interrupted, identity, overwrite=True) as working:
        assert (working / "a").exists()


def test_another_run_is_refused_with_the_difference_named(interrupted: Path):
    message = "but 'epochs: 2' became 'epochs: 3'; repeat the old command, or add --ov"
    with (
        pytest.raises(InputError, match=message),
        output_folder(interrupted, "seed: 0\nepochs: 3", overwrite=False),
    ):
        pass
    assert (partial_folder(interrupted) / "a").exists()


def test_a_run_with_more_settings_is_refused_too(interrupted: Path):
    longer = "seed: 0\nepochs: 2\nwidth: 8"
    with (
        pytest.raises(InputError, match="but the settings changed; repeat"),
        output_folder(interrupted, longer, overwrite=False),
    ):
        pass


def test_overwriting_discards_another_run(interrupted: Path):
    with output_folder(interrupted, "seed: 1", overwrite=True) as working:
        assert not (working / "a").exists()
        (working / "b").touch()
    assert names(interrupted) == ["b"]


def test_the_old_output_stands_until_the_new_is_whole(tmp_path: Path):
    out = tmp_path / "run"
    for text in ("old", "new"):
        with output_folder(out, text, overwrite=True) as working:
            (working / text).touch()
            assert out.exists() == (text == "new")
    assert names(out) == ["new"]


def test_a_file_in_the_way_is_replaced_only_when_asked(tmp_path: Path):
    out = tmp_path / "run"
    out.write_text("a file")
    with (
        pytest.raises(InputError, match="the output must not exist yet"),
        output_folder(out, "", overwrite=False),
    ):
        pass
    with output_folder(out, "", overwrite=True):
        pass
    assert out.is_dir()


def test_a_crash_while_the_folder_appears_never_hands_it_to_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"

    def crash(*_: object) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with (
            pytest.raises(OSError, match="power"),
            output_folder(out, "seed: 0", overwrite=False) as working,
        ):
            (working / "a").touch()
    with (
        pytest.raises(InputError, match="'seed: 0' became 'seed: 1'"),
        output_folder(out, "seed: 1", overwrite=False),
    ):
        pass


def test_a_relative_output_stays_put_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with output_folder(Path("run"), "", overwrite=False):
        os.chdir("elsewhere")
    assert (tmp_path / "run").is_dir()


def test_a_crash_between_the_two_renames_gives_the_old_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    fill(out, "old")
    rename = Path.rename

    def crash(path: Path, target: Path) -> None:
        if path == partial_folder(out):
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            fill(out, "new")
    assert names(out) == ["old"]
    assert names(tmp_path) == [".run.partial", "run"]

    out.rename(tmp_path / ".run.old")  # as after a kill at that moment
    with (
        pytest.raises(InputError, match="the output must not exist yet"),
        output_folder(out, "new", overwrite=False),
    ):
        pass
    assert names(out) == ["old"]
    fill(out, "new")
    assert names(out) == ["new"]
    assert names(tmp_path) == ["run"]


def fill(out: Path, name: str) -> None:
    with output_folder(out, name, overwrite=True) as working:
        (working / name).touch()


def test_what_killed_writers_left_does_not_get_into_the_output(interrupted: Path):
    working = partial_folder(interrupted)
    (working / "sub").mkdir()
    for name in (".a.12.tmp", ".tmpJUHRsM", "sub/.tmp012abc"):  # safetensors' too
        (working / name).touch()
    (working / ".tmpfiles").touch()
    with output_folder(interrupted, "seed: 0\nepochs: 2", overwrite=False):
        pass
    assert names(interrupted) == [".tmpfiles", "a", "sub"]
    assert names(interrupted / "sub") == []


def test_inputs_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zoo = tmp_path / "zoo"
    write_text(zoo / "member", "weights")
    (tmp_path / "link").symlink_to(zoo)
    for out in (
        zoo,
        tmp_path,
        tmp_path / "link",
        zoo / "member",
        tmp_path / "zoo" / "",
    ):
        with pytest.raises(InputError, match=f"but {out} is or holds .*; choose anoth"):
            claim_output(out, overwrite=True, inputs=[zoo / "member"])
        with (
            pytest.raises(InputError, match="must not replace what is in use"),
            output_folder(out, "", overwrite=True, inputs=[zoo / "member"]),
        ):
            pass
    with output_folder(zoo / "run", "", overwrite=True, inputs=[zoo]):
        pass  # inside, where nothing is replaced
    assert (zoo / "member").read_text() == "weights"
    monkeypatch.chdir(zoo / "run")
    for out in (Path(), Path(".."), zoo / "run", Path("/")):
        with (
            pytest.raises(InputError, match="must not replace what is in use"),
            output_folder(out, "", overwrite=True),
        ):
            pass


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    for name in ("run", "file"):
        (tmp_path / name).symlink_to(Path("disk") / name)
    for text in ("old", "new"):
        fill(tmp_path / "run", text)
        write_text(tmp_path / "file", text)
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert names(tmp_path / "disk" / "run") == ["new"]
    assert (tmp_path / "disk" / "file").read_text() == "new"
    assert names(tmp_path) == ["disk", "file", "run"]
    assert names(tmp_path / "disk") == ["file", "run"]
