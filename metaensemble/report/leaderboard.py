"""Differences between methods as text: for the terminal, Markdown and the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from metaensemble.report.comparison import BESIDE, Difference, Metric
from metaensemble.report.intervals import Estimate
from metaensemble.report.schema import Report
from metaensemble.report.table import escape_markdown, markdown_table

TITLES = (
    "method",
    "minus",
    "accuracy over images (points)",
    "accuracy over runs (points)",
    "NLL over images (nats)",
)
NOTE = (
    "Differences on test with 95 % intervals in brackets, each for itself: over images "
    "(how another test set might have come out, by a paired bootstrap), over runs (how "
    "other seeds might have come out, paired by seed and teachers, Student's t). The "
    "leader and the best member are the best on test, which flatters them."
)


class Row(NamedTuple):
    """One line of the table of differences."""

    setting: str
    method: str
    beside: str
    accuracy_over_images: str
    accuracy_over_runs: str
    nll_over_images: str


def rows(differences: Sequence[Difference]) -> list[Row]:
    """Return the lines of the table, a method after the other."""
    found: dict[tuple[str, str, str], dict[Metric, Difference]] = {}
    for one in differences:
        key = (one.setting, one.method, one.beside)
        found.setdefault(key, {})[one.metric] = one
    return [
        Row(
            *key,
            _points(each["accuracy"].over_images),
            _points(each["accuracy"].over_runs),
            _nats(each["nll"].over_images),
        )
        for key, each in sorted(
            found.items(), key=lambda item: BESIDE.index(item[1]["accuracy"].beside)
        )
    ]


def difference_table(differences: Sequence[Difference]) -> Table:
    """Return the differences of accuracy for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=NOTE,
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    table.add_column("minus", no_wrap=True)
    for over in ("images", "runs"):
        table.add_column(f"points, over {over}", justify="right", no_wrap=True)
    several = len({one.setting for one in differences}) > 1
    setting = None
    for row in sorted(rows(differences), key=lambda row: row.setting):
        if several and row.setting != setting:
            table.add_section()
            table.add_row(f"[italic]{escape(row.setting)}[/italic]")
        setting = row.setting
        numbers = (row.accuracy_over_images, row.accuracy_over_runs)
        table.add_row(escape(row.method), row.beside, *map(escape, numbers))
    return table


def leaderboard_markdown(
    reports: Sequence[Report], differences: Sequence[Difference]
) -> str:
    """Return the table of the runs and that of their differences, in Markdown."""
    parts = [markdown_table(reports)]
    for setting in dict.fromkeys(one.setting for one in differences):
        own = [row for row in rows(differences) if row.setting == setting]
        parts += [
            f"**Differences: {escape_markdown(setting)}**",
            "",
            f"| {' | '.join(TITLES)} |",
            "| --- | --- | ---: | ---: | ---: |",
            *(f"| {' | '.join(map(escape_markdown, row[1:]))} |" for row in own),
            "",
        ]
    return "\n".join([*parts, f"*{NOTE}*", ""])


def lead(differences: Sequence[Difference]) -> str | None:
    """Return whether the leader's lead may be chance; None without one rival.

    Of several settings, None: each has its own leader.
    """
    behind = [
        (one.method, one.over_runs or one.over_images)
        for one in differences
        if one.beside == "leader" and one.metric == "accuracy"
    ]
    if len({one.setting for one in differences}) != 1:
        return None
    known = [(method, gap) for method, gap in behind if gap is not None]
    if not known:
        return None
    method, gap = max(known, key=lambda pair: pair[1].mean)
    runs = any(one.over_runs == gap for one in differences)
    of = f"{gap.count:,} {'runs' if runs else 'test images'}"
    verdict = "may be chance" if gap.high >= 0 else "is more than chance"
    rivals = {name for name, _ in behind}
    leader = next(one.method for one in differences if one.method not in rivals)
    return (
        f"The lead of {leader} over the next, {method}, {verdict}: "
        f"{_signed(-gap.mean)} points, 95 % interval {_signed(-gap.high)} to "
        f"{_signed(-gap.low)} over {of}."
    )


def _points(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{_signed(found.mean)} [{_signed(found.low)}, {_signed(found.high)}]"


def _signed(fraction: float) -> str:
    """Return points with their sign; what rounds to zero is no negative zero."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def _nats(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
