"""Figures of how the headroom was won: against effort, and class by class."""

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from metaensemble.report.aggregate import grouped
from metaensemble.report.drawing import (
    ENSEMBLE,
    INK,
    MARKERS,
    SERIES,
    STUDENT,
    STYLE,
    WIDTH,
    brief,
    named_rows,
    percent_axis,
    svg_of,
    wrapped,
)
from metaensemble.report.schema import Report

Effort = Literal["train_images", "train_seconds"]
EFFORTS = {
    "train_images": "training images seen by the student",
    "train_seconds": "seconds of training",
}
LOWEST = -1.0
"""Headroom below which a point is drawn at the edge, as an arrow."""
MOST_METHODS = 8
"""Named in a figure; the rest is grey."""
MOST_CLASSES = 30
"""Drawn: of more, those with the largest differences."""


def headroom_figure(reports: Sequence[Report], effort: Effort) -> str | None:
    """Return the headroom recovered against effort, None where nothing is known of it.

    A mark is a finished student on test, one per run. A line is its training, on
    validation, where the report knows what there was to win on validation; seconds
    have none, since the curve counts images only.
    """
    known = [
        (label, [r for r in group if _end(r, effort) is not None])
        for label, group in grouped(reports)
    ]
    known = [(label, group) for label, group in known if group]
    spent = {getattr(r.cost, effort) for _, group in known for r in group}
    curves = effort == "train_images" and any(len(_curve(r)) > 1 for r in reports)
    if not spent or (len(spent) < 2 and not curves):
        return None
    with mpl.rc_context(STYLE):
        named = known[:MOST_METHODS]
        columns = 2 if max(len(label) for label, _ in named) <= 24 else 1
        height = 3.4 + 0.3 * (1 + len(named) // columns)
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for level, color in ((0.0, INK), (1.0, ENSEMBLE)):
            axes.axhline(level, color=color, linewidth=1.2, zorder=1)
        for place, (label, group) in enumerate(known):
            color = SERIES[place % len(SERIES)] if place < MOST_METHODS else INK
            marker = MARKERS[place % len(MARKERS)]
            _draw(axes, group, effort, color, marker, wrapped(label, 44))
        axes.set_xlim(left=0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, LOWEST - 0.1), max(high, 1.1))
        axes.margins(x=0.08)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        percent_axis(axes, "y")
        axes.set_xlabel(EFFORTS[effort])
        axes.set_ylabel("headroom recovered, %")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[:MOST_METHODS],
            labels[:MOST_METHODS],
            loc="outside lower left",
            ncols=columns,
        )
        return svg_of(figure, f"Headroom recovered against {EFFORTS[effort]}")


def class_figure(report: Report) -> str | None:
    """Return student minus ensemble for each class, None where it was not kept."""
    rows = sorted(report.per_class, key=lambda row: row.student - row.ensemble)
    if not rows:
        return None
    left_out = len(rows) - MOST_CLASSES
    if left_out > 0:
        most = sorted(rows, key=lambda row: -abs(row.student - row.ensemble))
        kept = {row.name for row in most[:MOST_CLASSES]}
        rows = [row for row in rows if row.name in kept]
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 0.9 + 0.25 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            change = row.student - row.ensemble
            marker = "o" if change >= 0 else "s"
            color = STUDENT if change >= 0 else ENSEMBLE
            axes.plot([0, change], [place, place], color=color, linewidth=2)
            axes.plot(change, place, marker=marker, markersize=6, color=color)
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        labels = [f"{brief(row.name, 22)} ({row.count:,})" for row in rows]
        named_rows(axes, labels)
        axes.grid(axis="x")
        axes.margins(x=0.1)
        percent_axis(axes, "x")
        axes.set_xlabel("accuracy of the student minus the ensemble's, points")
        return svg_of(figure, "Accuracy of the student minus the ensemble's, by class")


def _end(report: Report, effort: Effort) -> tuple[float, float] | None:
    spent, recovered = getattr(report.cost, effort), report.headroom.recovered
    if spent is None or recovered is None:
        return None
    return float(spent), float(recovered)


def _curve(report: Report) -> list[tuple[float, float]]:
    """Return images seen and headroom recovered on validation, along the training."""
    found = report.diagnosis
    if found is None or found.headroom <= found.headroom_error:
        return []  # a share of nothing, or of noise
    points = []
    for row in report.history or []:
        images, accuracy = row.get("images"), row.get("accuracy")
        if images is not None and accuracy is not None:
            recovered = (accuracy - found.mean_member) / found.headroom
            points.append((float(images), recovered))
    return points


def _draw(
    axes: Axes,
    group: Sequence[Report],
    effort: Effort,
    color: str,
    marker: str,
    label: str,
) -> None:
    """Draw the runs of one method, the first of them named."""
    for number, report in enumerate(group):
        curve = _curve(report) if effort == "train_images" else []
        if len(curve) > 1:
            x, y = zip(*curve, strict=True)
            axes.plot(x, y, linewidth=1.3, alpha=0.7, color=color)
        end = _end(report, effort)
        assert end is not None
        below = end[1] < LOWEST
        axes.plot(
            end[0],
            max(end[1], LOWEST),
            marker="v" if below else marker,
            markersize=8,
            linestyle="none",
            markeredgewidth=0,
            label=label if number == 0 else None,
            color=color,
            clip_on=False,  # at no effort it stands on the axis
        )
