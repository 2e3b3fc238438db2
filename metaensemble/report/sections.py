"""The parts of a page below its tables and figures, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape

from metaensemble.report import leaderboard
from metaensemble.report.choice import Choice
from metaensemble.report.comparison import Difference
from metaensemble.report.contrast import Contrast
from metaensemble.report.schema import Report

SMALL = 96
"""Pixels; a picture below is shown enlarged, its pixels as squares."""


def html_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1
) -> str:
    """Return a table in a box that scrolls on narrow screens; everything is escaped.

    Args:
        titles: of the columns.
        rows: the cells.
        texts: how many of the first columns hold text, which stands on the left.
    """
    head = "".join(
        f'<th scope="col"{_left(place < texts)}>{escape(title)}</th>'
        for place, title in enumerate(titles)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{_left(place < texts)}>{escape(cell)}</td>"
            for place, cell in enumerate(rest, 1)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return scrolling(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def scrolling(inner: str) -> str:
    """Return HTML in a box that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" tabindex="0">{inner}</div>'


def differences_section(differences: Sequence[Difference]) -> str:
    """Return the differences between methods, empty for none."""
    if not differences:
        return ""
    found = leaderboard.rows(differences)
    parts = ["<h2>Differences between methods</h2>"]
    settings = list(dict.fromkeys(row.setting for row in found))
    for setting in settings:
        if len(settings) > 1:
            parts.append(f"<h3>{escape(setting)}</h3>")
        own = [row[1:] for row in found if row.setting == setting]
        parts.append(html_table(leaderboard.TITLES, own, 2))
    return "\n".join([*parts, f'<p class="note">{escape(leaderboard.NOTE)}</p>'])


def choice_section(choice: Choice | None) -> str:
    """Return what `auto` tried, empty where it chose nothing."""
    if choice is None:
        return ""
    titles = (
        "candidate",
        "how",
        "accuracy (%)",
        "NLL",
        "ECE (%)",
        "latency (ms)",
        "MACs",
        "parameters",
        "making (s)",
        "",
    )
    rows = [
        (
            one.method,
            one.settings,
            f"{100 * one.accuracy:.1f}",
            f"{one.nll:.3f}",
            f"{100 * one.ece:.1f}",
            f"{one.latency_ms:.3g}",
            f"{one.macs:,}",
            f"{one.parameters:,}",
            f"{one.train_seconds:.3g}",
            "chosen"
            if place == choice.chosen
            else ("dominated" if one.dominated else ""),
        )
        for place, one in enumerate(choice.candidates)
    ]
    left_out = "".join(f"<li>{escape(text)}</li>" for text in choice.left_out)
    return (
        f"<h2>What was tried</h2>{html_table(titles, rows, 2)}"
        f'<p class="note">On {choice.images:,} validation images. Dominated: another '
        "candidate is at least as good in accuracy, NLL, latency and time of making, "
        "and better in one.</p>" + (f"<ul>{left_out}</ul>" if left_out else "")
    )


def contrast_section(contrasts: Sequence[Contrast]) -> str:
    """Return the images on which student and ensemble differ, empty for none."""
    if not contrasts:
        return ""
    items = "".join(_contrast(one) for one in contrasts)
    return (
        "<h2>Where student and ensemble differ most</h2>"
        f'<div class="contrasts">{items}</div>'
        '<p class="note">Test images, above each answer their class: first those that '
        "student and ensemble decide differently, then those whose right class gets "
        "the most different probabilities. Each answer: the class that the model names "
        "and how sure it is, then the probability that it gives to the right class.</p>"
    )


def others_section(reports: Sequence[Report]) -> str:
    """Return what was trained together, and beside the student; empty for nothing."""
    together = [report for report in reports if report.trained_together]
    others = [(report, other) for report in reports for other in report.others]
    parts = []
    if together:
        names = ", ".join(dict.fromkeys(r.method["name"] for r in together))
        parts.append(
            f"<p>{escape(names)} trained the members in the same run, the student "
            "among them: the rows of members and ensemble are networks that taught "
            "one another, not networks that were given.</p>"
        )
    if others:
        titles = ("network", "made by", "accuracy (%)", "NLL", "ECE (%)")
        rows = [
            (
                other.path,
                report.method["name"],
                f"{100 * other.test.accuracy:.1f}",
                f"{other.test.nll:.3f}",
                f"{100 * other.test.ece:.1f}",
            )
            for report, other in others
        ]
        parts.append(html_table(titles, rows, 2))
    if not parts:
        return ""
    return f"<h2>What was trained beside the student</h2>{''.join(parts)}"


def _contrast(one: Contrast) -> str:
    sharp = ' class="sharp"' if max(one.width, one.height) < SMALL else ""
    lines = "".join(
        f"<dt>{who}</dt><dd>{escape(said)} ({100 * sure:.0f} %)"
        f" <small>right: {100 * right:.0f} %</small></dd>"
        for who, said, sure, right in (
            (
                "student",
                one.student,
                one.student_confidence,
                one.student_on_label,
            ),
            (
                "ensemble",
                one.ensemble,
                one.ensemble_confidence,
                one.ensemble_on_label,
            ),
        )
    )
    return (
        f'<figure><img{sharp} src="data:image/png;base64,{one.png}" '
        f'width="{one.width}" height="{one.height}" '
        f'alt="{escape(one.alternative)}">'
        f"<figcaption><strong>{escape(one.label)}</strong>"
        f"<dl>{lines}</dl></figcaption></figure>"
    )


def _left(text: bool) -> str:
    return ' class="text"' if text else ""
