"""``metaensemble compare``: table and pictures over runs."""

from collections.abc import Sequence

from rich.console import Console

from metaensemble.cli.parse import parse
from metaensemble.core.files import claim_output
from metaensemble.report.leaderboard import difference_table, lead
from metaensemble.report.table import comparison_table
from metaensemble.report.verdict import headline
from metaensemble.workflows.comparing import (
    CompareOptions,
    compare_into,
    hashes_of,
    read_runs,
)
from metaensemble.workflows.options import run_folder


class Compare(CompareOptions):
    """Compare runs on the same data: a table, intervals of differences, pictures.

    Example: metaensemble compare run-kd-0 run-kd-1 run-soup --out compared

    Runs of one method with several seeds give means and standard errors; runs that keep
    their predictions (all but old ones do) give intervals over the test images, too.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Compare, arguments, "compare", positional="runs")
    claim_output(options.out, overwrite=options.overwrite, inputs=options.runs)
    runs = read_runs(options.runs)
    extra = {"reports_sha256": hashes_of(options.runs)}
    with run_folder(
        options.out, options, overwrite=options.overwrite, extra=extra, divided=False
    ) as folder:
        many = len(runs.reports)
        title = f"metaensemble compare: {many} run" + ("s" if many != 1 else "")
        comparison = compare_into(folder.own, title, runs)
    console = Console()
    console.print(comparison_table(runs.reports))
    console.print(difference_table(comparison.differences))
    if runs.unpredicted:
        console.print(
            f"{runs.unpredicted} of {many} runs keep no predictions, so intervals over "
            "test images are missing; make them again for those.",
            highlight=False,
        )
    for line in (headline(runs.reports), lead(comparison.differences)):
        if line:
            console.print(line, markup=False, highlight=False)
    console.print(f"Written to {options.out}", markup=False, highlight=False)
