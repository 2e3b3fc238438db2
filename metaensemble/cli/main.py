"""The entry point: picks the command, turns bad input into one line and status 2."""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from types import ModuleType

from rich.console import Console

from metaensemble.core.disk import disk_error
from metaensemble.core.errors import InputError

COMMANDS = {
    "demo": "the whole story on the embedded digits",
    "teach": "train members",
    "fuse": "N trained models -> one student",
    "learn-weightformer": "train a predictor on subsets of a zoo",
    "predict": "one forward pass, no training",
    "evaluate": "each model, and their ensemble",
    "compare": "table and pictures over runs",
    "export": "one verified file for other runtimes",
    "methods": "what there is, what each needs, its paper",
}
"""Command to one line of help; command ``a-b`` lies in ``cli/a_b.py``."""

SHARED = {"teach", "fuse", "learn-weightformer", "predict"}
"""What several processes do together under torchrun."""

USAGE = """\
usage: metaensemble COMMAND ...

Bring N trained networks, get one.

commands:
{commands}

metaensemble COMMAND --help explains a command. Start with: metaensemble demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, or 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<20}{text}" for name, text in COMMANDS.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(commands=listing), end="")
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise InputError(
                f"the command must be one of {', '.join(COMMANDS)}, but is {name!r}; "
                "see: metaensemble --help"
            )
        # Imported on demand: torch takes seconds, --help must not.
        module = importlib.import_module(f"metaensemble.cli.{name.replace('-', '_')}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _run_among_others(name, module, rest)
        else:
            module.run(rest)
    except InputError as error:
        return _refused(error)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of a writer that is none of ours, such as a stream
        told = disk_error(error)
        if told is None:
            raise
        return _refused(told)
    except KeyboardInterrupt:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 130
    return 0


def _refused(error: InputError) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error:[/]", end=" ")
    console.print(str(error), markup=False)
    return 2


def _run_among_others(name: str, module: ModuleType, arguments: list[str]) -> None:
    """Run a command in one of the processes that torchrun started.

    The first one speaks for all; what cannot be shared is its work alone.
    """
    from metaensemble.core.distributed import LostProcessError, ToldError, joined

    with joined() as world:
        if name not in SHARED and not world.first:
            return
        silent = open(os.devnull, "w") if not world.first else None
        try:
            with redirect_stdout(silent or sys.stdout):
                module.run(arguments)
        except ToldError:
            sys.exit(2)
        except LostProcessError as error:
            print(
                f"process {world.rank} stops: {error}; the same command continues "
                "the run",
                file=sys.stderr,
            )
            # Without the way out of the group, which would wait for the lost one.
            os._exit(1)
        finally:
            if silent:
                silent.close()
