"""``metaensemble methods``: what there is, what each needs, its paper."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from metaensemble.cli.parse import parse
from metaensemble.core.config import Config
from metaensemble.models import describe_architectures
from metaensemble.workflows.methods_page import methods_page
from metaensemble.workflows.registry import METHODS


class Methods(Config):
    """List the methods of fuse, and with --architectures the networks.

    Example: metaensemble methods --architectures
    """

    architectures: bool = False
    """List the built-in architectures and their fields, too."""
    markdown: bool = False
    """Print the page of all methods, with losses and hyperparameters, instead."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Methods, arguments, "methods")
    if options.markdown:
        print(methods_page(), end="")
        return
    console = Console()
    table = Table(title="methods")
    table.add_column("method", no_wrap=True)  # names are typed as they stand
    for column in ("what it does", "needs", "cost", "paper"):
        table.add_column(column)
    for name, kind in METHODS.items():
        needs = ", ".join(kind.needs)
        table.add_row(name, kind.summary, needs, kind.cost, kind.paper)
    console.print(table)
    console.print("Options of one: metaensemble fuse --method NAME --help")
    if options.architectures:
        print(describe_architectures())
