"""Rows of the report, and the tables made of them; needs nothing but Python."""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

Row = dict[str, Any]
Better = Literal["lower", "higher", None]
"""Which of two figures is the better one; None: neither."""
CHANGED = "change of B's logits by its permutation"
"""A quantity that two questions have."""
ROUNDING = 1e-4
"""A change of logits below this is float32's, not the permutation's."""
QUESTIONS = {
    "alignment": "Bringing two networks to one order of hidden units, then averaging",
    "soup": "The mean of N checkpoints, from files to a file",
    "scores": "Figures of one set of logits",
    "plans": "Transport plans between channels",
    "losses": "Values of distillation losses",
    "distillation": "Images per second of distillation",
    "absent": "Not run",
}
"""By the name under which a row has them, with their titles, in order."""


def row(
    question: str,
    rival: str,
    version: str,
    case: str,
    quantity: str,
    ours: float | None,
    theirs: float | None,
    unit: str,
    *,
    better: Better = None,
    tolerance: float | None = None,
    note: str = "",
    **more: Any,
) -> Row:
    """Return one row.

    Args:
        question: a key of `QUESTIONS`.
        rival: the other tool's name.
        version: of the other tool.
        case: on what.
        quantity: what was measured.
        ours: our figure; of several runs the median.
        theirs: the rival's figure.
        unit: of both.
        better: which figure wins.
        tolerance: up to which difference both are the same; None: not asked.
        note: what one must know to read it.
        more: further keys, such as the single runs.
    """
    same = None
    if tolerance is not None and ours is not None and theirs is not None:
        same = abs(ours - theirs) <= tolerance
    return {
        "question": question,
        "rival": rival,
        "version": version,
        "case": case,
        "quantity": quantity,
        "ours": ours,
        "theirs": theirs,
        "unit": unit,
        "better": better,
        "same": same,
        "tolerance": tolerance,
        "note": note,
        **more,
    }


def measured(
    question: str,
    rival: str,
    version: str,
    case: str,
    quantity: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    note: str = "",
) -> Row:
    """Return a row of what varies from run to run: medians, and the runs themselves."""
    return row(
        question,
        rival,
        version,
        case,
        quantity,
        statistics.median(ours),
        statistics.median(theirs),
        unit,
        better="lower",
        note=note,
        ours_runs=list(ours),
        theirs_runs=list(theirs),
    )


def paired(
    question: str,
    rival: str,
    version: str,
    case: str,
    quantity: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
) -> Row:
    """Return a row of what is better the higher, on several pairs of networks.

    Ours and theirs are means over the same pairs; the verdict is their difference with
    its standard error over pairs.
    """
    apart = [mine - its for mine, its in zip(ours, theirs, strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return row(
        question,
        rival,
        version,
        case,
        quantity,
        statistics.mean(ours),
        statistics.mean(theirs),
        unit,
        better="higher",
        apart=[statistics.mean(apart), error],
        ours_pairs=list(ours),
        theirs_pairs=list(theirs),
    )


def absent(rival: str, version: str, why: str) -> Row:
    """Return the row of a rival that could not run here, with the reason."""
    return row("absent", rival, version, "", "", None, None, "", note=why)


def verdict(row: Row) -> str:
    """Return who is better and by how much, or whether both are the same."""
    ours, theirs = row["ours"], row["theirs"]
    if ours is None or theirs is None:
        return "-"
    if "ours_pairs" in row:
        mean, error = row["apart"]
        wins = "ours" if mean > 0 else "theirs"
        if abs(mean) < 2 * error or mean == 0:
            wins = "neither"
        return f"{wins} ({mean:+.4f} ± {error:.4f})"
    if row["same"] is not None:
        if ours == theirs:
            return "equal"
        apart = f"{abs(ours - theirs):.0e}"
        if row["same"]:
            return f"same (apart by {apart})"
        if row["better"] is None:
            return f"differ by {apart}"
    if row["better"] is None:
        return "-"
    if ours == theirs:
        return "equal"
    wins = "ours" if (ours < theirs) == (row["better"] == "lower") else "theirs"
    if row["tolerance"] is None and min(ours, theirs) > 0:
        return f"{wins}, {max(ours, theirs) / min(ours, theirs):.2f} x"
    return wins


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, a table per question."""
    parts = []
    for question, title in QUESTIONS.items():
        own = [each for each in rows if each["question"] == question]
        if not own:
            continue
        lines = [f"### {title}", ""]
        if question == "absent":
            lines += ["| rival | version | why |", "|---|---|---|"]
            lines += [f"| {r['rival']} | {r['version']} | {r['note']} |" for r in own]
        else:
            lines += [
                "| rival | case | quantity | ours | theirs | unit | better or same |",
                "|---|---|---|---:|---:|---|---|",
            ]
            lines += [_line(r) for r in own]
            notes = dict.fromkeys(r["note"] for r in own if r["note"])
            lines += ["", *(f"- {note}" for note in notes)] if notes else []
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def filled(readme: str, rows: Sequence[Row]) -> str:
    """Return a README with the tables between its markers."""
    begin, end = "<!-- table rivals -->\n", "<!-- end rivals -->"
    head, rest = readme.split(begin, 1)
    return head + begin + table(rows) + end + rest.split(end, 1)[1]


def _line(row: Row) -> str:
    cells = [
        f"{row['rival']} {row['version']}".strip(),
        row["case"],
        row["quantity"],
        _number(row, "ours"),
        _number(row, "theirs"),
        row["unit"],
        verdict(row),
    ]
    return "| " + " | ".join(cells) + " |"


def _number(row: Row, side: str) -> str:
    value = row[side]
    if value is None:
        return "-"
    text = _short(value)
    runs = row.get(f"{side}_runs")
    if runs and len(runs) > 1:
        text += f" ({_short(min(runs))}-{_short(max(runs))})"
    return text


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.1e}"
