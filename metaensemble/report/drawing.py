"""The look that all figures share, and how a figure becomes SVG text.

The ground is transparent, text stays text, and neutral ink is `INK`, which a page
may replace by ``currentColor``. Colours are told apart by readers who are colour-blind
(after Okabe and Ito 2008), and never alone: marks and dashes differ, too.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK = "#7b818b"
"""A grey with a contrast of about 4 on white and on near-black."""
STUDENT = "#2f7fd0"
ENSEMBLE = "#d9700d"
MEMBER = "#159e78"
SERIES = (STUDENT, MEMBER, "#c05a9e", "#a8841a", "#4a97cc")
"""Of several methods, with `MARKERS`; each at least 3 to 1 on white and near-black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 5.6
"""Inches; narrow, so that text stays readable on a telephone."""
OFFSET = "offset points"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metaensemble",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def percent_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Write the fractions of an axis as percent."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def named_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Let the y axis name rows instead of numbers, the first at the top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def brief(label: str, width: int = 30) -> str:
    """Return a label cut to a width in characters; the page's table has all of it."""
    return label if len(label) <= width else f"{label[: width - 1].rstrip(' ,(')}…"


def wrapped(label: str, width: int = 30) -> str:
    """Return a label broken into at most three lines of a width in characters."""
    lines = textwrap.wrap(label, width, max_lines=3, placeholder=" …")
    return "\n".join(lines) or label


def svg_of(figure: Figure, title: str) -> str:
    """Return the figure as one ``<svg>`` element without date, prolog or metadata.

    Args:
        figure: is drawn.
        title: for those who do not see the figure.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # ids of groups repeat from figure to figure; those of definitions are hashes
    text = re.sub(r'<g id="[a-zA-Z0-9_.-]+_\d+">', "<g>", text)
    label = escape(title)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()
