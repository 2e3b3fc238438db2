"""What commands print when they are done, and how they are repeated."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaensemble.report import Report
from metaensemble.report.table import comparison_table


def command_line(command: str, arguments: Sequence[str]) -> str:
    """Return the line that repeats a command, for its report."""
    return shlex.join(["metaensemble", command, *arguments])


def show(reports: Sequence[Report], where: Path) -> None:
    """Print the table of reports, the last one's verdict, and where the files are."""
    console = Console()
    console.print(comparison_table(list(reports)))
    if reports[-1].verdict:
        console.print(reports[-1].verdict, markup=False, highlight=False)
    console.print(f"Written to {where}", highlight=False)
