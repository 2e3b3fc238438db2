"""The entry point: picks the command, turns bad input into one line and status 2."""

import importlib
import sys
from collections.abc import Sequence

from rich.console import Console

from metaensemble.core.errors import InputError

COMMANDS = {
    "demo": "the whole story on the embedded digits",
    "teach": "train members",
    "fuse": "N trained models -> one student",
    "learn-weightformer": "train a predictor on subsets of a zoo",
    "predict": "one forward pass, no training",
    "evaluate": "each model, and their ensemble",
    "methods": "what there is, what each needs, its paper",
}
"""Command to one line of help; command ``a-b`` lies in ``cli/a_b.py``."""

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
        module.run(rest)
    except InputError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 130
    return 0
