"""A model card for one student: Markdown with the Hugging Face hub's front matter."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from metaensemble.core.errors import InputError
from metaensemble.core.files import write_text
from metaensemble.core.guards import one_line
from metaensemble.metrics.measure import Measured
from metaensemble.report.findings import barrier_lines
from metaensemble.report.intervals import Interval, wilson
from metaensemble.report.schema import Report
from metaensemble.report.table import escape_markdown, markdown_table
from metaensemble.report.verdict import headline
from metaensemble.teachers import MemberInfo

UNKNOWN = "unknown"
"""The licence of a student nobody has said anything about."""
MOST_CLASSES = 50
"""Named in a card."""

CARD = Template("""\
---
$front
---

# $title

$verdict

## What it is

One network made from an ensemble of $members ($architecture) by `metaensemble`
with the method $method.$fallback Weights: `student.safetensors`
(sha256 `$sha256`).

$hyperparameters

## How to load it

```python
$loading
```

$input
$diagnosis
## Teachers

$teachers

## Data

$data: $train training, $validation validation and $test test images of $classes
classes. Selection used validation data; test data were touched once, at the end.

## Results on test data

$table

| model | accuracy | top-5 | NLL | Brier | ECE | images |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
$numbers

Fractions, not percent; in brackets 95 % intervals over the test images: Wilson's for
accuracies, a bootstrap's for NLL and Brier.$differences

The student decides as its ensemble does on $agreement of the test images;
KL(ensemble || student) is $kl nats.

## Limits

- The numbers hold for test images like the training images. Not tested: other
  cameras or preprocessing, noise, blur and corruption, adversarial inputs, and how the
  errors fall on groups of people or things that the classes do not name.
- It names one of its $classes classes whatever it is shown, also for what is none.
- The student inherits what its teachers get wrong, and their biases.$weakest
- Its confidence is as calibrated as the ECE above says, not more; fit a temperature
  on your own validation data before you act on probabilities.
- The licence ($license) is what whoever made it said; this tool cannot know the
  licences of teachers and data, which bind the student, too.
$notes
## How to repeat

```
$command
```

Seed $seed; $environment.
""")


def write_card(
    path: Path,
    report: Report,
    info: MemberInfo | None = None,
    license: str = UNKNOWN,
) -> None:
    """Write the model card of one student, whole or not at all.

    Args:
        path: the file, normally ``card.md``.
        report: of the student.
        info: the student's record, for its classes and input.
        license: an identifier of the hub's, such as ``mit``; see `refuse_license`.
    """
    student, data = report.student, report.data
    architectures = sorted({t.architecture for t in report.teachers})
    models = {
        "student": student.test,
        "ensemble": report.ensemble.test,
        "best member": report.best_teacher.test,
        "mean member": report.mean_teacher.test,
    }
    text = CARD.substitute(
        front=yaml.safe_dump(
            front_matter(report, license), sort_keys=False, allow_unicode=True
        ).strip(),
        title=escape_markdown(_title(report)),
        verdict=escape_markdown(headline([report])),
        architecture=escape_markdown(" / ".join(architectures) or "unknown"),
        members=len(report.teachers),
        method=escape_markdown(report.method["name"]),
        fallback=_fallback(report),
        diagnosis=_diagnosis(report),
        sha256=student.sha256 or "not recorded",
        hyperparameters=_bullets(
            {k: v for k, v in report.method.items() if k != "name"}
        ),
        teachers=_teachers(report),
        data=escape_markdown(data.name),
        train=f"{data.train:,}",
        validation=f"{data.validation:,}",
        test=f"{data.test:,}",
        classes=data.classes,
        loading=_loading(info),
        input=_input(info),
        differences=_differences(report),
        weakest=_weakest(report),
        license=escape_markdown(license),
        table=markdown_table([report]),
        numbers="\n".join(_numbers(n, m, report) for n, m in models.items()),
        agreement=f"{report.fidelity.agreement:.4f}",
        kl=f"{report.fidelity.kl:.4f}",
        notes="".join(f"- {escape_markdown(note)}\n" for note in report.notes),
        command=" ".join(report.command.replace("```", "").split()),
        seed="not recorded" if report.seed is None else report.seed,
        environment=", ".join(
            f"{escape_markdown(str(k))} {escape_markdown(str(v))}"
            for k, v in report.environment.items()
        ),
    )
    write_text(path, text)


def refuse_license(license: str) -> None:
    """Refuse what the hub would not read as a licence's identifier.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", license):
        raise InputError(
            "--license must be an identifier in lower case such as apache-2.0, mit, "
            f"cc-by-4.0, other or unknown, but is {one_line(repr(license))}; choose one"
        )


def front_matter(report: Report, license: str = UNKNOWN) -> dict[str, Any]:
    """Return the card's metadata in the form that the Hugging Face hub reads."""
    test, name = report.student.test, report.data.name
    metrics = {
        "accuracy": test.accuracy,
        "nll": test.nll,
        "brier_score": test.brier,
        "expected_calibration_error": test.ece,
    }
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": name, "split": "test"},
        "metrics": [
            {"type": kind, "value": round(value, 6)} for kind, value in metrics.items()
        ],
    }
    return {
        "license": license,
        "library_name": "metaensemble",
        "pipeline_tag": "image-classification",
        "tags": ["metaensemble", "ensemble", report.method["name"]],
        "metrics": list(metrics),
        "model-index": [{"name": _title(report), "results": [result]}],
    }


def _title(report: Report) -> str:
    members, name = len(report.teachers), report.method["name"]
    if report.fell_back:
        return f"Best of {members} teachers on {report.data.name}, instead of {name}"
    return f"{name} student of {members} teachers on {report.data.name}"


def _fallback(report: Report) -> str:
    if report.against_best is None or not report.fell_back:
        return ""
    member = escape_markdown(report.against_best.best_member)
    return (
        f"\nWhat the method made was below the best member on validation, so this is "
        f"that member, {member}, as it was."
    )


def _diagnosis(report: Report) -> str:
    """Return the section on what was known before, and the barrier measured after."""
    found = [*report.diagnosis.lines] if report.diagnosis else []
    if report.barrier:
        found += barrier_lines(report.barrier)
    if not found:
        return ""
    rows = "".join(f"- {escape_markdown(line)}\n" for line in found)
    return f"\n## The members before the work\n\n{rows}"


def _teachers(report: Report) -> str:
    rows = [
        "| file | architecture | test accuracy | sha256 |",
        "| --- | --- | ---: | --- |",
    ]
    for t in report.teachers:
        file, architecture = escape_markdown(t.path), escape_markdown(t.architecture)
        rows.append(
            f"| {file} | {architecture} | {t.test.accuracy:.4f} | `{t.sha256}` |"
        )
    return "\n".join(rows)


def _numbers(name: str, m: Measured, report: Report) -> str:
    """Return a model's row; of a mean of several models there are no intervals."""
    accuracy: Interval | None = wilson(m.accuracy * m.count, m.count)
    found: Mapping[str, Interval] = {}
    if name == "mean member" and len(report.teachers) > 1:
        accuracy = None
    elif report.intervals is not None and name in ("student", "ensemble"):
        found = getattr(report.intervals, name)
    return (
        f"| {name} | {_with(m.accuracy, accuracy)} | {m.top5:.4f} "
        f"| {_with(m.nll, found.get('nll'))} | {_with(m.brier, found.get('brier'))} "
        f"| {m.ece:.4f} | {m.count:,} |"
    )


def _with(value: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _differences(report: Report) -> str:
    """Return student minus ensemble and best member, with intervals, in words."""
    if report.intervals is None:
        return ""
    own = report.student.test.accuracy
    told = [
        f"{100 * (own - whose.accuracy):+.1f} ({100 * found['accuracy'].low:+.1f} to "
        f"{100 * found['accuracy'].high:+.1f}) points of accuracy from {what}"
        for what, whose, found in (
            (
                "the ensemble",
                report.ensemble.test,
                report.intervals.student_minus_ensemble,
            ),
            (
                "the member that is best on test",
                report.best_teacher.test,
                report.intervals.student_minus_best_member,
            ),
        )
    ]
    return f" Paired by image, the student is {' and '.join(told)}."


def _loading(info: MemberInfo | None) -> str:
    """Return three lines of Python that run as they stand, beside the file."""
    further = shape = ""
    if info is not None:
        if ":" in info.architecture:  # imports what the record names
            further = f", architecture={info.architecture!r}"
        shape = f"  # images: uint8 (batch, {', '.join(map(str, info.input_shape))})"
    return (
        "import metaensemble as me\n"
        f'student = me.load_ensemble(["student.safetensors"]{further}).members[0]\n'
        f"probabilities = student.network()(student.prepare(images)).softmax(-1){shape}"
    ).replace("```", "")


def _input(info: MemberInfo | None) -> str:
    if info is None:
        return "What it takes and gives stands in the header of its file.\n"
    channels, height, width = info.input_shape
    names = [escape_markdown(name) for name in info.classes[:MOST_CLASSES]]
    more = len(info.classes) - len(names)
    return (
        f"It takes images of {height}x{width} pixels and {channels} channel"
        f"{'s' if channels > 1 else ''}; others must be resized first, and on other "
        "sizes it was not tested. Its outputs are, in this order: "
        f"{', '.join(names)}{f' and {more:,} more' if more else ''}.\n"
    )


def _weakest(report: Report) -> str:
    if not report.per_class:
        return ""
    rows = sorted(report.per_class, key=lambda row: row.student)[:3]
    told = ", ".join(
        f"{escape_markdown(row.name)} ({row.student:.3f} of {row.count:,} images)"
        for row in rows
    )
    return f"\n- It is weakest on these classes: {told}."


def _bullets(values: Mapping[str, Any]) -> str:
    rows = (f"- {escape_markdown(f'{k}: {v}')}" for k, v in values.items())
    return "\n".join(rows) or "It has no hyperparameters."
