"""``metaensemble methods``: what there is, what each needs, its paper."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metaensemble.cli.parse import parse
from metaensemble.core.config import Config
from metaensemble.core.method import Method
from metaensemble.methods import TrainedMethod, WeightFormerMethod
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
    for title, kinds in _groups().items():
        console.print(f"\n[bold]{title}[/bold]")
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)  # names are typed as they stand
        grid.add_column()
        for name, kind in kinds.items():
            facts = f"needs {', '.join(kind.needs)}; {kind.cost}\n{kind.paper}"
            grid.add_row(f"[bold]{name}[/bold]", escape(kind.summary))
            grid.add_row("", f"[dim]{escape(facts)}[/dim]")
        console.print(grid)
    console.print("\nOptions of one: metaensemble fuse --method NAME --help")
    if options.architectures:
        print(describe_architectures())


def _groups() -> dict[str, dict[str, type[Method]]]:
    """Return the methods by what they start from."""
    groups: dict[str, dict[str, type[Method]]] = {
        "Merging: from two members on, no training of the student": {},
        "Distillation: from one member on, into any architecture": {},
        "Ensembles trained together: no members": {},
        "A generator of weights": {},
    }
    merging, distilling, online, generating = groups.values()
    for name, kind in METHODS.items():
        if issubclass(kind, WeightFormerMethod):
            generating[name] = kind
        elif kind.fewest_members == 0:
            online[name] = kind
        elif issubclass(kind, TrainedMethod):
            distilling[name] = kind
        else:
            merging[name] = kind
    return {title: kinds for title, kinds in groups.items() if kinds}
