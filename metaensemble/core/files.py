"""Files and folders that appear whole or not at all."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from metaensemble.core.disk import (
    beside,
    disk_error,
    disk_told,
    sync_file,
    sync_folder,
    sync_tree,
)
from metaensemble.core.errors import DiskError, InputError
from metaensemble.core.locks import held

STAMP = ".identity"
"""The file of a working folder that says what work grows in it."""
_LEFTOVER = re.compile(r"\..*\.tmp|\.tmp\w{6}")  # ours; safetensors'
_working: dict[Path, int] = {}  # this process's working folders, held open


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`.

    The file is fsynced before the rename and its folder after it, so that after a crash
    the name holds either the old bytes or all of the new ones. On an error the
    temporary file is removed. Of a symbolic link, what it points to is replaced.

    Raises:
        DiskError: the disk is full or read-only, the folder was removed, ...
    """
    with disk_told(path):
        path = path.resolve() if path.is_symlink() else path
    temporary = beside(path, f"{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _refuse_lost(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync_file(temporary)
        with suppress(PermissionError):  # of file systems without permissions
            temporary.chmod(0o666 & ~_umask())  # some writers make their files private
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        told = disk_error(error, path, probe=temporary)
        if told is None:
            raise
        raise told from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def partial_folder(out: Path) -> Path:
    """Return where the output folder `out` grows before it appears."""
    return beside(out, "partial")


def claim_output(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output folder or file that exists, unless it may be replaced.

    Args:
        out: the folder or file.
        overwrite: whether it may be replaced.
        inputs: files and folders that are read; they are never replaced.

    Raises:
        InputError: `out` exists, and `overwrite` is false, or it is or holds an input
            or the current folder.
    """
    with disk_told(out):
        if not out.exists():
            return
        if not overwrite:
            raise InputError(
                f"the output must not exist yet, but {out} does; "
                "choose another --out or add --overwrite"
            )
        target = out.resolve()
        for path in [*inputs, Path.cwd()]:
            if path.resolve().is_relative_to(target):
                raise InputError(
                    f"the output must not replace what is in use, but {out} is or "
                    f"holds {path}; choose another --out"
                )


@contextmanager
def output_folder(
    out: Path, identity: str, *, overwrite: bool, inputs: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yield a working folder that becomes `out` when the block ends without an error.

    The folder is kept after an interruption and taken up again by the next call with
    the same `identity` (a text that describes the work, normally the resolved config),
    so that finished parts and checkpoints in it are found. A working folder of another
    identity is refused, for it may hold hours of somebody's work. What `out` was stands
    until the new is whole. Of a symbolic link, what it points to is replaced.

    Args:
        out: the folder that is to appear.
        identity: of the work.
        overwrite: whether an `out` that exists, and an unfinished run of another
            identity, may be replaced.
        inputs: files and folders that are read; `out` must neither be nor hold one.

    Raises:
        InputError: `out` exists and may not be overwritten, an unfinished run with
            another identity lies in the way, or another process is at this one.
        DiskError: the disk is full or read-only, the working folder was removed, ...
    """
    with disk_told(out):
        out = out.absolute()
        if out.is_symlink() or out.name == "..":
            out = out.resolve()
    claim_output(out, overwrite=overwrite, inputs=inputs)
    with ExitStack() as stack:
        with disk_told(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(beside(out, "lock"), out))
            _restore(out)
            claim_output(out, overwrite=overwrite, inputs=inputs)  # nobody else now
            working = _take_up(partial_folder(out), identity, overwrite=overwrite)
            stack.enter_context(_watched(working))
        try:
            yield working
            _refuse_lost(working)
        except InputError:
            raise
        except OSError as error:
            _refuse_lost(working)
            told = disk_error(error)  # of a writer that is none of ours, such as a log
            if told is None:
                raise
            raise told from error
        with disk_told(out):
            _appear(working, out)


def _take_up(working: Path, identity: str, *, overwrite: bool) -> Path:
    """Make the working folder, or clean up the one that a run of `identity` left."""
    stamp = working / STAMP
    if working.exists() and overwrite and _read(stamp) != identity:
        shutil.rmtree(working)
    if working.exists():
        found = _read(stamp)
        if found is not None and found != identity:
            raise InputError(
                f"an unfinished run can be resumed only with its own settings, but "
                f"{_first_difference(found, identity)}; repeat the old command, "
                f"or add --overwrite to discard {working}"
            )
    working.mkdir(parents=True, exist_ok=True)
    for path in working.rglob(".*"):  # of a process that was killed while it wrote
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()
    write_text(stamp, identity)
    return working


@contextmanager
def _watched(working: Path) -> Iterator[None]:
    """Have writers notice, in the block, that the working folder is no longer it."""
    _working[working] = os.open(working, os.O_RDONLY)  # open, its number stays taken
    try:
        yield
    finally:
        os.close(_working.pop(working))


def _refuse_lost(path: Path) -> None:
    """Refuse to write into a working folder that was removed, or made anew by others.

    A run that went on in a new one would give an output that lacks its first parts.
    """
    for folder, descriptor in _working.items():
        if not path.is_relative_to(folder):
            continue
        try:
            same = os.path.samestat(os.fstat(descriptor), folder.stat())
        except OSError:
            same = False
        if not same:
            raise DiskError(
                f"{folder} must stay while its run goes on, but was removed or "
                "replaced; leave it alone and repeat the same command"
            )


def _appear(working: Path, out: Path) -> None:
    """Give the working folder its name; what had it stands until then."""
    sync_tree(working)
    old = beside(out, "old")
    if out.exists():
        _remove(old)
        out.rename(old)
    try:
        working.rename(out)
    except BaseException:
        _restore(out)
        raise
    sync_folder(out.parent)
    with suppress(OSError):
        _remove(old)
    # Last, so that a crash never leaves a working folder that anybody may adopt.
    with suppress(OSError):
        (out / STAMP).unlink(missing_ok=True)


def _restore(out: Path) -> None:
    """Give an output its name back that a crash took away just before the new came."""
    old = beside(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _first_difference(old: str, new: str) -> str:
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"{before.strip()!r} became {after.strip()!r}"
    return "the settings changed"
