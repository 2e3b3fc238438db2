"""A hand-made hostile file, and how modules of such files enter theirs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samples import SAMPLES


@dataclass(frozen=True)
class Case:
    """A hostile file."""

    name: str
    reader: str
    make: Callable[[Path], None]
    """Puts it into an empty folder."""
    message: str
    """A pattern of the error; ``read`` where it may be read."""


Spoil = Callable[[Path], Any]
"""Spoils the good files of a reader in a folder."""


class Enter(Protocol):
    """Enters a function that spoils the reader's good files as a case."""

    def __call__(
        self, reader: str, message: str, name: str = ""
    ) -> Callable[[Spoil], Spoil]: ...


def entering(cases: list[Case]) -> Enter:
    """Return a decorator that enters what it decorates into a list of cases."""

    def case(reader: str, message: str, name: str = "") -> Callable[[Spoil], Spoil]:
        def enter(spoil: Spoil) -> Spoil:
            def make(folder: Path) -> None:
                SAMPLES[reader].write(folder, 0)
                spoil(folder)

            title = name or spoil.__name__.strip("_").replace("_", " ")
            cases.append(Case(f"{reader}: {title}", reader, make, message))
            return spoil

        return enter

    return case


class Payload:
    """Whoever unpickles it as Python does, runs a command."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / 'executed'}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Named:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call
