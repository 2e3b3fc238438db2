"""A model card for one student: Markdown with the Hugging Face hub's front matter."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from metaensemble.core.files import write_text
from metaensemble.metrics.measure import Measured
from metaensemble.report.findings import barrier_lines
from metaensemble.report.schema import Report
from metaensemble.report.table import escape_markdown, markdown_table
from metaensemble.report.verdict import headline

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

Fractions, not percent. The student decides as its ensemble does on $agreement of the
test images; KL(ensemble || student) is $kl nats.

## Limits

- The numbers hold for test images like the training images. Other cameras, other
  preprocessing and classes that are not in the data were not tested.
- The student inherits what its teachers get wrong, and their biases.
- Its confidence is as calibrated as the ECE above says, not more; fit a temperature
  on your own validation data before you act on probabilities.
- The licence is that of teachers and data, which this tool cannot know; set it above.
$notes
## How to repeat

```
$command
```

Seed $seed; $environment.
""")


def write_card(path: Path, report: Report) -> None:
    """Write the model card of one student, whole or not at all."""
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
            front_matter(report), sort_keys=False, allow_unicode=True
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
        table=markdown_table([report]),
        numbers="\n".join(_numbers(name, m) for name, m in models.items()),
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


def front_matter(report: Report) -> dict[str, Any]:
    """Return the card's metadata in the form that the Hugging Face hub reads."""
    test, name = report.student.test, report.data.name
    metrics = {"accuracy": test.accuracy, "nll": test.nll, "ece": test.ece}
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": name, "split": "test"},
        "metrics": [
            {"type": kind, "value": round(value, 6)} for kind, value in metrics.items()
        ],
    }
    return {
        "license": "unknown",
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


def _numbers(name: str, m: Measured) -> str:
    return (
        f"| {name} | {m.accuracy:.4f} | {m.top5:.4f} | {m.nll:.4f} | {m.brier:.4f} "
        f"| {m.ece:.4f} | {m.count:,} |"
    )


def _bullets(values: Mapping[str, Any]) -> str:
    rows = (f"- {escape_markdown(f'{k}: {v}')}" for k, v in values.items())
    return "\n".join(rows) or "It has no hyperparameters."
