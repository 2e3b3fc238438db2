"""What goes wrong on a disk, told in one sentence; and making sure of what is on it."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaensemble.core.errors import DiskError, InputError

LONGEST_NAME = 255
"""Bytes that a file's name may have on nearly every file system."""
PROBE = 1 << 20
"""Bytes that are written to find out why a writer failed that does not say."""

_REPEAT = "repeat the same command: what is finished is kept"
_FREE = f"free space and {_REPEAT}"
_ALLOW = f"choose another place, or allow it and {_REPEAT}"
_FULL = {
    errno.ENOSPC: ("its disk is full", _FREE),
    errno.EDQUOT: ("the quota of its disk is used up", _FREE),
    errno.EFBIG: (
        "it would be larger than files may be here",
        f"raise the limit (ulimit -f) and {_REPEAT}",
    ),
    errno.EROFS: ("its file system is read-only", _ALLOW),
}
"""What only ever happens to writers: what it is, and what to do."""
_OTHERS = {
    errno.EACCES: ("that is not allowed", _ALLOW),
    errno.EPERM: ("that is not allowed", _ALLOW),
    errno.ENOENT: ("its folder was removed", f"leave it alone and {_REPEAT}"),
    errno.ESTALE: ("its folder was removed", f"leave it alone and {_REPEAT}"),
    errno.ENOTDIR: ("a file lies where its folder must be", "choose another place"),
    errno.EEXIST: ("a file lies where its folder must be", "choose another place"),
    errno.EISDIR: ("a folder has its name", "choose another name"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EIO: ("its disk fails (input/output error)", f"mend it and {_REPEAT}"),
}


@contextmanager
def disk_told(path: Path) -> Iterator[None]:
    """Tell, as a `DiskError` about `path`, what goes wrong on its disk in the block."""
    try:
        yield
    except OSError as error:
        told = disk_error(error, path)
        if told is None:
            raise
        raise told from error


def disk_error(
    error: BaseException, path: Path | None = None, *, probe: Path | None = None
) -> DiskError | None:
    """Return what an error says about the disk, or None if that is nothing.

    Args:
        error: as a writer raised it. torch, numpy and safetensors have types of their
            own for a full disk, and some do not say that it is one.
        path: what was to be written; None where that is not known. Then only errors
            count that cannot come from reading.
        probe: a file that may be written to and removed, to find out what is wrong.
    """
    if isinstance(error, InputError):  # one sentence already
        return None
    code = _code(error)
    if code is None and probe and isinstance(error, OSError | RuntimeError):
        code = _probe(probe)
    what = _FULL.get(code or 0)
    if what is None and path is not None:
        what = _OTHERS.get(code or 0)
    if what is None:
        return None
    if path and code == errno.ENOENT and path.parent.exists():
        return None  # another file is missing, and that is no matter of the disk
    name = path or getattr(error, "filename", None) or "what this command writes"
    return DiskError(f"{name} must be written, but {what[0]}; {what[1]}")


def beside(path: Path, ending: str) -> Path:
    """Return the path ``.NAME.ENDING`` beside `path`, NAME cut where it is too long."""
    name = f".{path.name}.{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        room = LONGEST_NAME - len(os.fsencode(f".~{digest}.{ending}"))
        start = os.fsencode(path.name)[:room].decode(errors="ignore")
        name = f".{start}~{digest}.{ending}"
    return path.with_name(name)


def sync_file(path: Path) -> None:
    """Return when a file's bytes are on the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Return when a folder's names are on the disk, where its file system can tell."""
    with suppress(OSError):  # what was renamed is whole under either name
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Return when a folder with all that lies in it is on the disk."""
    for inside in path.rglob("*"):
        if inside.is_dir():
            sync_folder(inside)
        elif inside.is_file():
            sync_file(inside)
    sync_folder(path)


def _code(error: BaseException) -> int | None:
    """Return the system's number of an error, told by it or by what it came of."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if found := re.search(r"\(os error (\d+)\)", str(cause)):  # safetensors
            return int(found[1])
        cause = cause.__cause__ or cause.__context__
    return None


def _probe(path: Path) -> int | None:
    try:
        with path.open("ab") as handle:
            handle.write(bytes(PROBE))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return error.errno
    return None
