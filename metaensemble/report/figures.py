"""Figures of a comparison as SVG text: deterministic, for light and dark grounds.

Each function takes reports of one setting (see `aggregate.by_setting`); `drawing` tells
of the look.
"""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from metaensemble.report.aggregate import Line, aggregate, lines, references
from metaensemble.report.drawing import (
    ENSEMBLE,
    INK,
    MEMBER,
    OFFSET,
    STUDENT,
    STYLE,
    WIDTH,
    brief,
    named_rows,
    percent_axis,
    svg_of,
    wrapped,
)
from metaensemble.report.schema import Reliability, Report

Cost = Literal["latency_ms", "train_images"]
COST_TITLES = {
    "latency_ms": "latency of one forward pass, ms",
    "train_images": "training images seen by the student",
}


def accuracy_figure(reports: Sequence[Report]) -> str:
    """Return the accuracy of every method as dots, between mean member and ensemble.

    Whiskers are standard errors over seeds and draws, where there are several. A method
    far below the mean member stands at the edge as an arrow with its number.
    """
    methods = aggregate(reports)
    marks = {line.kind: line.values["accuracy"].mean for line in references(reports)}
    with mpl.rc_context(STYLE):
        labels = [wrapped(line.label) for line in methods]
        rows = sum(1 + 0.6 * label.count("\n") for label in labels)
        figure = Figure((WIDTH, 1.15 + 0.3 * rows), layout="constrained")
        axes = figure.subplots()
        floor = _floor(marks["mean member"], marks["ensemble"])
        for place, line in enumerate(methods):
            value = line.values["accuracy"]
            if value.mean < floor:
                axes.plot(floor, place, marker="<", markersize=7, color=STUDENT)
                note = f"{100 * value.mean:.1f}"
                axes.annotate(
                    note, (floor, place), (8, 0), va="center", textcoords=OFFSET
                )
                continue
            axes.errorbar(
                value.mean,
                place,
                xerr=value.error,
                fmt="o",
                markersize=7,
                color=STUDENT,
                elinewidth=1.5,
            )
        sides = ("right", "left")  # of the line, so that the labels part
        if marks["mean member"] > marks["ensemble"]:
            sides = ("left", "right")
        _mark(axes, marks["mean member"], "mean member", INK, sides[0])
        _mark(axes, marks["ensemble"], "ensemble", ENSEMBLE, sides[1])
        named_rows(axes, labels)
        axes.grid(axis="y")
        axes.margins(x=0.12)
        percent_axis(axes, "x")
        axes.set_xlabel("test accuracy, %")
        return svg_of(figure, "Accuracy of every method beside its ensemble")


def reliability_figure(report: Report) -> str | None:
    """Return the reliability diagram, None without bins.

    It has the student, the ensemble and, where the report knows it, the best member.

    Area is the share of the examples that fall into the bin.
    """
    pair = report.reliability
    if pair is None:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 4)))
        if pair.best_member is not None:
            _bins(axes, pair.best_member, MEMBER, "^", "best member")
        _bins(axes, pair.ensemble, ENSEMBLE, "s", "ensemble")
        _bins(axes, pair.student, STUDENT, "o", "student")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.grid()
        percent_axis(axes, "x")
        percent_axis(axes, "y")
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("test accuracy, %")
        axes.legend(loc="upper left")
        return svg_of(
            figure, "Accuracy against confidence, of the student and of its ensemble"
        )


def barrier_figure(report: Report) -> str | None:
    """Return accuracy and NLL on the line between two members, None if not measured."""
    barrier = report.barrier
    if barrier is None:
        return None
    curves = [(barrier.as_given, INK, "s", "as given")]
    if barrier.aligned is not None:
        curves.append((barrier.aligned, STUDENT, "o", "aligned"))
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        for curve, color, marker, label in curves:
            shares = [point.alpha for point in curve.points]
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "markersize": 6,
                "linewidth": 1.5,
                "clip_on": False,
            }
            accuracies = [point.accuracy for point in curve.points]
            upper.plot(shares, accuracies, label=label, **style)
            lower.plot(shares, [point.nll for point in curve.points], **style)
        percent_axis(upper, "y")
        upper.set_ylabel("accuracy, %")
        lower.set_ylabel("NLL, nats")
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_locator(MaxNLocator(5))
        lower.set_xticks([0, 0.25, 0.5, 0.75, 1], ["first", "¼", "½", "¾", "second"])
        lower.set_xlabel("share of the second member's weights")
        for axes in (upper, lower):
            axes.grid()
        if len(curves) > 1:
            upper.legend(loc="best")
        return svg_of(figure, "Accuracy and NLL between two members")


def cost_figure(reports: Sequence[Report], cost: Cost) -> str | None:
    """Return accuracy against a cost, None where all points cost the same.

    The upper line is the ensemble's accuracy, the lower one its mean member's.
    """
    everything = lines(reports)
    points = [line for line in everything if cost in line.values]
    if len({line.values[cost].mean for line in points}) < 2:
        return None
    marks = {line.kind: line.values["accuracy"].mean for line in everything}
    floor = _floor(marks["mean member"], marks["ensemble"])
    with mpl.rc_context(STYLE):
        height = max(4.0, 0.8 + 0.25 * len(points))
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for line in points:
            color = ENSEMBLE if line.kind == "ensemble" else STUDENT
            marker = "s" if line.kind == "ensemble" else "o"
            x, y = line.values[cost].mean, line.values["accuracy"].mean
            if y < floor:
                y, marker = floor, "v"
            axes.plot(x, y, marker=marker, markersize=7, color=color, clip_on=False)
        axes.axhline(marks["mean member"], color=INK, linewidth=1.2, zorder=1)
        axes.axhline(marks["ensemble"], color=ENSEMBLE, linewidth=1.2, zorder=1)
        axes.set_xlim(left=0)
        axes.margins(x=0.1, y=0.12)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if cost == "train_images":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        percent_axis(axes, "y")
        axes.set_xlabel(COST_TITLES[cost])
        axes.set_ylabel("test accuracy, %")
        _name_points(axes, points, cost, floor, height)
        return svg_of(figure, f"Test accuracy against {COST_TITLES[cost]}")


def _mark(axes: Axes, value: float, label: str, color: str, side: str) -> None:
    """Draw a reference line; its label stands above, away from the other's."""
    axes.axvline(value, color=color, linewidth=1.5, zorder=1)
    axes.annotate(
        label,
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if side == "right" else 4, 4),
        textcoords=OFFSET,
        ha=side,
        color=color,
    )


def _bins(axes: Axes, bins: Reliability, color: str, marker: str, label: str) -> None:
    used = [i for i, count in enumerate(bins.count) if count]
    total = sum(bins.count)
    x = [bins.confidence[i] for i in used]
    y = [bins.accuracy[i] for i in used]
    sizes = [12 + 260 * bins.count[i] / total for i in used]
    axes.plot(
        x, y, color=color, linewidth=1.5, marker=marker, markersize=3, label=label
    )
    axes.scatter(x, y, s=sizes, color=color, alpha=0.35, linewidths=0, marker=marker)


def _name_points(
    axes: Axes, points: Sequence[Line], cost: Cost, floor: float, height: float
) -> None:
    """Write every label in a column at the right, spread so that none overlap."""
    ordered = sorted(points, key=lambda line: line.values["accuracy"].mean)
    low, high = axes.get_ylim()
    gap = (high - low) * 0.25 / height  # a line of text takes a quarter of an inch
    places: list[float] = []
    for line in ordered:
        wanted = max(floor, line.values["accuracy"].mean)
        places.append(max(wanted, places[-1] + gap) if places else wanted)
    ceiling = high
    for index in reversed(range(len(places))):  # back under the upper edge
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    for line, place in zip(ordered, places, strict=True):
        x, y = line.values[cost].mean, line.values["accuracy"].mean
        label = brief(line.label, 24)
        label = label if y >= floor else f"{label}: {100 * y:.1f}%"
        axes.annotate(
            label,
            (x, max(floor, y)),
            xytext=(1.04, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=ENSEMBLE if line.kind == "ensemble" else INK,
            arrowprops={
                "arrowstyle": "-",
                "color": INK,
                "alpha": 0.45,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _floor(mean_member: float, ensemble: float) -> float:
    """Return the accuracy below which a point would squeeze all others together."""
    return max(0.0, mean_member - max(0.01, ensemble - mean_member))
