"""One self-contained HTML page over reports: what a newcomer sees first.

No network, no scripts; light and dark follow the reader's system; tables and figures
scroll inside their boxes on narrow screens; on paper, everything is unfolded.
"""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from metaensemble.core.errors import InputError
from metaensemble.core.files import write_text
from metaensemble.report import curves, figures
from metaensemble.report.aggregate import by_setting, lines
from metaensemble.report.comparison import Difference
from metaensemble.report.contrast import Contrast
from metaensemble.report.drawing import INK
from metaensemble.report.findings import barrier_lines
from metaensemble.report.leaderboard import lead
from metaensemble.report.schema import Report
from metaensemble.report.sections import (
    choice_section,
    contrast_section,
    differences_section,
    html_table,
    others_section,
    scrolling,
)
from metaensemble.report.table import cells
from metaensemble.report.verdict import best_method, headline

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<p class="title">$title</p>
<h1>$headline</h1>
$lead</header>
$body
</main>
</body>
</html>
""")

READING = (
    ("mean member", "average over the trained networks that were given"),
    ("ensemble", "average of their probabilities: N networks must run for each answer"),
    ("accuracy", "share of test images whose class is right"),
    (
        "headroom",
        "share of the ensemble's gain over its mean member that the one network keeps: "
        "0 is the mean member, 100 the ensemble",
    ),
    ("agrees", "share of test images on which it decides as the ensemble does"),
    ("NLL", "mean negative log-probability of the right class; lower is better"),
    ("ECE", "expected calibration error: gap between confidence and accuracy"),
    ("latency", "time of one forward pass; compare within one machine only"),
    ("images", "training images the student saw, repetitions counted"),
    ("MACs", "multiply-accumulates of one image"),
    ("\N{PLUS-MINUS SIGN}", "standard error over seeds and draws"),
)


def write_page(
    path: Path,
    title: str,
    reports: Sequence[Report],
    *,
    contrasts: Sequence[Contrast] = (),
    differences: Sequence[Difference] = (),
    config: str | None = None,
) -> None:
    """Write the page over one or many reports, whole or not at all.

    Args:
        path: the file, normally ``page.html``.
        title: small line above the headline, such as the study's or the run's name.
        reports: at least one; different settings get a table and figures each.
        contrasts: images on which the best method and its ensemble differ.
        differences: between methods, with intervals.
        config: what repeats the run, as its ``config.yaml`` holds it.
    """
    if not reports:
        raise InputError("a page needs at least one report, but got none")
    settings = by_setting(reports)
    parts = [_tiles(best_method(reports))]
    for setting, group in settings.items():
        parts += [f"<h2>{escape(setting)}</h2>", _table(group), *_figures(group)]
    parts += [
        differences_section(differences),
        choice_section(reports[0].choice if len(reports) == 1 else None),
        contrast_section(contrasts),
        others_section(reports),
        _reading(),
        _diagnosis(reports),
        _notes(reports),
        _repeat(reports, config),
        _environment(reports),
    ]
    further = lead(differences)
    text = PAGE.substitute(
        title=escape(title),
        style=files("metaensemble.report").joinpath("page.css").read_text("utf-8"),
        headline=escape(headline(reports)),
        lead=f'<p class="lead">{escape(further)}</p>\n' if further else "",
        body="\n".join(part for part in parts if part),
    )
    write_text(path, text)


def _tiles(reports: Sequence[Report]) -> str:
    """Return the few numbers that tell the story of one method."""
    values = {line.kind: line.values for line in lines(reports)}
    method, ensemble = values["method"], values["ensemble"]
    tiles = [
        (f"{100 * values[kind]['accuracy'].mean:.1f}%", name)
        for kind, name in (
            ("mean member", "mean member"),
            ("method", _shown_name(reports[0])),
            ("ensemble", "ensemble"),
        )
    ]
    if "recovered" in method:
        recovered = f"{100 * method['recovered'].mean:.0f}%"
        tiles.append((recovered, "of the ensemble's gain kept"))
    if "latency_ms" in method and "latency_ms" in ensemble:
        factor = ensemble["latency_ms"].mean / method["latency_ms"].mean
        times = f"{factor:.1f} \N{MULTIPLICATION SIGN}"
        tiles.append((times, "as fast as the ensemble"))
    rows = "".join(
        f"<div><dd>{escape(number)}</dd><dt>{escape(name)}</dt></div>"
        for number, name in tiles
    )
    return f'<dl class="tiles">{rows}</dl>'


def _shown_name(report: Report) -> str:
    name = report.method["name"]
    return f"best member, instead of {name}" if report.fell_back else name


def _table(reports: Sequence[Report]) -> str:
    text = cells(reports)
    head = "".join(
        f'<th scope="col">{escape(c.title)}<small>{escape(c.unit)}</small></th>'
        for c in text.columns
    )
    body = []
    for line, row in text.rows:
        kind = "method" if line.kind == "method" else "reference"
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        label = f'<th scope="row">{escape(line.label)}</th>'
        body.append(f'<tr class="{kind}">{label}{numbers}</tr>')
    return scrolling(
        f'<table><thead><tr><th scope="col">model</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _figures(reports: Sequence[Report]) -> list[str]:
    shown = best_method(reports)[0]
    name = shown.method["name"]
    drawn = [
        (
            figures.accuracy_figure(reports),
            "Test accuracy of every method. What lies between the two lines is the "
            "headroom: the nearer to the ensemble's line, the more of it one network "
            "keeps. Whiskers are standard errors, an arrow points beyond the edge.",
        ),
        (
            figures.cost_figure(reports, "latency_ms"),
            "Accuracy against the time of one answer. The ensemble runs every member; "
            "a student is one network. Lines: ensemble (upper), mean member (lower).",
        ),
        (
            curves.headroom_figure(reports, "train_images"),
            "Headroom against images seen, repetitions counted; at 0, none were. "
            "Marks: finished students on test. Lines: their training, on validation. "
            "At 0% stands the mean member, at 100% the ensemble.",
        ),
        (
            curves.headroom_figure(reports, "train_seconds"),
            "Headroom on test against the seconds that making the student took; "
            "compare within one machine only.",
        ),
        (
            figures.reliability_figure(shown),
            f"Calibration of {name} and of what it was made of: on the dashed line, "
            "confidence equals accuracy; below it, the model is too sure. The larger "
            "the mark, the more images have that confidence.",
        ),
        (
            curves.class_figure(shown),
            f"{name} beside the ensemble, class by class, with the number of test "
            "images in brackets: classes on the left of the line lost. A class of few "
            "images moves by chance.",
        ),
        (figures.barrier_figure(shown), _barrier_caption(shown)),
    ]
    items = "".join(
        f"<figure>{scrolling(_inked(svg))}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for svg, caption in drawn
        if svg is not None
    )
    return [f'<div class="figures">{items}</div>']


def _barrier_caption(report: Report) -> str:
    if report.barrier is None:
        return ""
    return (
        f"Networks on the straight line between the first two members, on "
        f"{report.barrier.images:,} validation images; batch-norm statistics "
        "re-estimated between the ends. The barrier is the largest NLL between the "
        "ends minus the mean of theirs; "
        f"{'; '.join(barrier_lines(report.barrier))}."
    )


def _diagnosis(reports: Sequence[Report]) -> str:
    """Return what was known of the members before the work, if they are one set."""
    found = _distinct(
        "".join(f"<li>{escape(line)}</li>" for line in report.diagnosis.lines)
        for report in reports
        if report.diagnosis is not None
    )
    if len(found) != 1:
        return ""
    return f"<h2>The members before the work</h2><ul>{found[0]}</ul>"


def _inked(svg: str) -> str:
    return svg.replace(INK, "currentColor")


def _reading() -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in READING)
    return (
        "<details><summary>How to read the table</summary>"
        f'<dl class="pairs">{rows}</dl></details>'
    )


def _notes(reports: Sequence[Report]) -> str:
    notes = _distinct(note for report in reports for note in report.notes)
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul>{items}</ul>"


def _repeat(reports: Sequence[Report], config: str | None) -> str:
    commands = _distinct(report.command for report in reports)
    block = _code("\n".join(commands))
    if len(commands) > 4:
        summary = f"<summary>All {len(commands)} commands</summary>"
        block = f"<details>{summary}{block}</details>"
    if config is not None:
        block += (
            "<details><summary>All settings, as --config reads them</summary>"
            f"{_code(config.rstrip())}</details>"
        )
    teachers = {t.sha256: t for report in reports for t in report.teachers}
    titles = ("file", "architecture", "accuracy (%)", "sha256")
    rows = [
        (t.path, t.architecture, f"{100 * t.test.accuracy:.1f}", t.sha256[:12])
        for t in teachers.values()
    ]
    return (
        f"<h2>How to repeat</h2>{block}"
        f"<details><summary>The {len(teachers)} teachers</summary>"
        f"{html_table(titles, rows)}</details>"
    )


def _code(text: str) -> str:
    return scrolling(f"<pre><code>{escape(text)}</code></pre>")


def _environment(reports: Sequence[Report]) -> str:
    names = _distinct(name for report in reports for name in report.environment)
    rows = []
    for name in names:
        values = _distinct(
            str(r.environment[name]) for r in reports if name in r.environment
        )
        text = escape("; ".join(values))
        rows.append(f"<dt>{escape(name)}</dt><dd>{text}</dd>")
    return f'<h2>Environment</h2><dl class="pairs">{"".join(rows)}</dl>'


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
