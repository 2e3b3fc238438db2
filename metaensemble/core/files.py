"""Files that appear whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaensemble.core.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`.

    The file is fsynced before the rename, so that after a crash the name holds either
    the old bytes or all of the new ones. On an error the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers make their files private
        temporary.replace(path)
    finally:
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
    return out.with_name(f".{out.name}.partial")


def claim_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder or file that exists, unless it may be replaced.

    Raises:
        InputError: `out` exists and `overwrite` is false.
    """
    if out.exists() and not overwrite:
        raise InputError(
            f"the output must not exist yet, but {out} does; "
            "choose another --out or add --overwrite"
        )


@contextmanager
def output_folder(out: Path, identity: str, *, overwrite: bool) -> Iterator[Path]:
    """Yield a working folder that becomes `out` when the block ends without an error.

    The folder is kept after an interruption and taken up again by the next call with
    the same `identity` (a text that describes the work, normally the resolved config),
    so that finished parts and checkpoints in it are found. A working folder of another
    identity is refused, for it may hold hours of somebody's work.

    Raises:
        InputError: `out` exists and may not be overwritten, or an unfinished run with
            another identity lies in the way.
    """
    out = out.absolute()
    claim_output(out, overwrite=overwrite)
    working = partial_folder(out)
    stamp = working / ".identity"
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
    write_text(stamp, identity)
    yield working
    old = out.with_name(f".{out.name}.old")
    if out.exists():  # kept until the new one has its name
        _remove(old)
        out.rename(old)
    working.rename(out)
    _remove(old)
    # Last, so that a crash never leaves a working folder that anybody may adopt.
    (out / stamp.name).unlink(missing_ok=True)


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
