"""The errors that a user can cause and mend.

A message is one sentence: what must hold, what was got, what to do. The command line
prints it and exits with status 2; every other exception is a bug and keeps its trace.
"""


class InputError(ValueError):
    """Input from outside (a flag, a file, a value) does not meet a stated condition."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that must exist does not; the message tells how to make it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DiskError(InputError, OSError):
    """Something cannot be written; the message says why, and how to go on."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
