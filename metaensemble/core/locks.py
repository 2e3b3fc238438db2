"""One run at a time: a lock that the system releases when its process ends."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaensemble.core.errors import InputError

try:
    import fcntl
except ImportError:  # a system without it, such as Windows
    fcntl = None

_UNSUPPORTED = {
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EINVAL,
}


@contextmanager
def held(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock file `path` in the block, so that nobody else writes `what`.

    The file says who holds it and is removed afterwards. One that a killed process
    left is no hindrance: the lock is the system's, the file only its place. Where the
    file system knows no locks, that is said on standard error, and nothing is locked.

    Raises:
        InputError: another process holds it, or another part of this one.
        OSError: the file cannot be made.
    """
    descriptor = _acquire(path, what)
    try:
        with suppress(OSError):  # on a full disk: who holds it only helps the reader
            os.ftruncate(descriptor, 0)
            who = f"process {os.getpid()} on {socket.gethostname()}"
            os.pwrite(descriptor, who.encode(), 0)
        yield
    finally:
        if _is(descriptor, path):
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _acquire(path: Path, what: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
        except BlockingIOError as error:
            who = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise InputError(
                f"only one run at a time may write {what}, but "
                f"{who or 'another process'} is at it; wait for it or choose another "
                "--out"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        if _is(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder removed it meanwhile: it protects nothing


def _lock(descriptor: int, path: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        print(
            f"note: {path.parent} knows no locks; start no second run into one folder",
            file=sys.stderr,
        )


def _is(descriptor: int, path: Path) -> bool:
    """Return whether `path` is the file that is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
