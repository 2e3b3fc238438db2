"""Reports side by side, for the terminal and for READMEs: the same cells."""

import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from metaensemble.report.aggregate import Line, lines
from metaensemble.report.schema import Report


class Column(NamedTuple):
    """One column: which value, its heading and unit, how a number is written."""

    key: str
    title: str
    unit: str
    write: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _score(value: float) -> str:
    return f"{value:.3f}"


def _count(value: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _duration(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


COLUMNS = (
    Column("accuracy", "accuracy", "%", _percent),
    Column("recovered", "headroom", "%", _percent),
    Column("agreement", "agrees", "%", _percent),
    Column("nll", "NLL", "nats", _score),
    Column("ece", "ECE", "%", _percent),
    Column("latency_ms", "latency", "ms", _duration),
    Column("train_seconds", "training", "s", _duration),
    Column("train_images", "images", "seen", _count),
    Column("parameters", "parameters", "", _count),
    Column("macs", "MACs", "", _count),
)
"""In order of interest; where a terminal is narrow, the last are left out first."""

MIN_LABEL = 16
"""Least width of the first column, in which settings are wrapped."""

LEGEND = (
    "headroom: share of the ensemble's gain over its mean member that was recovered; "
    "agrees: same decision as the ensemble; ± standard error over runs; "
    "all on test data."
)


class Cells(NamedTuple):
    """The comparison as text: shown columns, and for each line its cells."""

    columns: list[Column]
    rows: list[tuple[Line, list[str]]]

    def width(self, place: int) -> int:
        """Return the characters that a column needs, heading included."""
        column = self.columns[place]
        texts = [column.title, column.unit, *(cells[place] for _, cells in self.rows)]
        return max(len(text) for text in texts)


def cells(reports: Sequence[Report], columns: Sequence[str] | None = None) -> Cells:
    """Return the text of every cell; columns of which nothing is known are left out.

    Args:
        reports: of one or several settings, seeds and draws.
        columns: keys of `COLUMNS` to keep; all by default.

    This is the one place where a fraction becomes percent.
    """
    found = lines(reports)
    wanted = [c for c in COLUMNS if columns is None or c.key in columns]
    shown = [c for c in wanted if any(c.key in line.values for line in found)]
    return Cells(shown, [(line, [_cell(line, c) for c in shown]) for line in found])


def comparison_table(reports: Sequence[Report], width: int | None = None) -> Table:
    """Return the comparison for the terminal, references first.

    Args:
        reports: of one or several settings, seeds and draws.
        width: characters per line, by default the terminal's; columns that do not fit
            are left out, and the caption names them.
    """
    text = cells(reports)
    text = Cells(
        text.columns,
        [(line, [c.replace(" ± ", "±") for c in row]) for line, row in text.rows],
    )
    room = width or shutil.get_terminal_size((80, 24)).columns
    labels = max([MIN_LABEL, *(len(line.label) for line, _ in text.rows)])
    room -= labels + 2  # and a space at either edge
    fitting = 0
    for place in range(len(text.columns)):
        room -= text.width(place) + 2  # two spaces before it
        if room < 0:
            break
        fitting += 1
    left_out = [column.title for column in text.columns[fitting:]]
    caption = LEGEND + (f" Not shown here: {', '.join(left_out)}." if left_out else "")
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    table.add_column("model", min_width=labels, max_width=labels)
    for column in text.columns[:fitting]:
        heading = f"{column.title}\n{column.unit}"
        table.add_column(heading, justify="right", no_wrap=True)
    settings = {line.setting for line, _ in text.rows}
    setting = None
    for line, row in text.rows:
        if line.setting != setting and len(settings) > 1:
            table.add_section()
            table.add_row(f"[italic]{escape(line.setting)}[/italic]")
        setting = line.setting
        style = "" if line.kind == "method" else "dim"
        table.add_row(escape(line.label), *row[:fitting], style=style)
    return table


def markdown_table(
    reports: Sequence[Report], columns: Sequence[str] | None = None
) -> str:
    """Return the comparison in Markdown, one table per setting, for READMEs.

    Args:
        reports: of one or several settings, seeds and draws.
        columns: keys of `COLUMNS` to show; all by default.
    """
    text = cells(reports, columns)
    settings = list(dict.fromkeys(line.setting for line, _ in text.rows))
    titles = [f"{c.title} ({c.unit})" if c.unit else c.title for c in text.columns]
    parts = []
    for setting in settings:
        if len(settings) > 1:
            parts += [f"**{escape_markdown(setting)}**", ""]
        parts.append(_markdown_row(["model", *titles]))
        parts.append(_markdown_row(["---", *["---:"] * len(titles)]))
        for line, row in text.rows:
            if line.setting == setting:
                parts.append(_markdown_row([escape_markdown(line.label), *row]))
        parts.append("")
    return "\n".join([*parts, f"*{LEGEND[0].upper()}{LEGEND[1:]}*", ""])


def escape_markdown(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, also inside a table."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _cell(line: Line, column: Column) -> str:
    value = line.values.get(column.key)
    if value is None:
        return "-"
    text = column.write(value.mean)
    if value.error is not None and _is_quality(column):
        text += f" ± {column.write(value.error)}"
    if value.count < line.count:  # a mean over some of the runs must say so
        text += f" ({value.count} of {line.count})"
    return text


def _is_quality(column: Column) -> bool:
    return column.write in (_percent, _score)


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
