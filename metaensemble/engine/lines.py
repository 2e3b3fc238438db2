"""A file of JSON lines that can be read while it is written."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends values to a file, one whole line each.

    A line goes to the system in one piece, its end last: whatever ends with a newline
    is whole. A reader may meet the last line half done (systems copy page by page), and
    a process that dies at that moment leaves it so; the first line of the next session
    takes its place.
    """

    def __init__(self, path: Path):
        self.path = path
        self._begun = False

    def append(self, value: dict[str, Any]) -> None:
        """Write one line; numbers that are not finite, which JSON lacks, become null.

        Raises:
            OSError: the line cannot be written; nothing of it remains.
        """
        line = (_dumps(value) + "\n").encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        # Opened each time: the folder may have been renamed or removed meanwhile.
        descriptor = os.open(self.path, flags, 0o666)
        try:
            if not self._begun:
                _drop_torn_line(descriptor)
                self._begun = True
            end = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(descriptor)


def _drop_torn_line(descriptor: int) -> None:
    """Cut off what follows the last end of a line."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - 65536)
        os.lseek(descriptor, begin, os.SEEK_SET)
        found = os.read(descriptor, end - begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, end)


def _dumps(value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
