"""Rows that other studies measured beside a rival; nothing is measured twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import CHANGED, ROUNDING, Row, row

STUDIES = Path(__file__).parents[1]
ALIGNMENT = "Rows of ResNet-18 and VGG-16 are of benchmarks/alignment (two threads, "
ALIGNMENT += "another day), not of this run."
DISTILLATION = "Rows of benchmarks/distillation_speed (two threads), not of this run."


def rows(rig: Any = None) -> Iterator[Row]:
    """Yield rows of benchmarks/alignment and benchmarks/distillation_speed."""
    del rig  # as the other questions have it
    report = _report("alignment")
    ours = {
        (each["network"], each["weights"]): each
        for each in report["rows"]
        if each["tool"] == "metaensemble"
    }
    for each in report["rows"]:
        own = ours.get((each["network"], each["weights"]))
        if own is each or own is None or each["status"] != "ok":
            continue
        case = f"{each['network']}, {each['weights']} weights"
        head = ("alignment", each["tool"], each["version"], case)
        seconds = (side["seconds"]["matching"] for side in (own, each))
        quantity = "seconds of the search"
        yield row(*head, quantity, *seconds, "s", better="lower", note=ALIGNMENT)
        objectives = (side["objective"] for side in (own, each))
        unit = "<A, P(B)>"
        yield row(*head, "objective", *objectives, unit, better="higher")
        changes = (side["logits_changed_by"] for side in (own, each))
        yield row(
            *head,
            CHANGED,
            *changes,
            "of the largest",
            better="lower",
            tolerance=ROUNDING,
        )
    report = _report("distillation_speed")
    for each in report["rows"]:
        yield row(
            "distillation",
            "plain PyTorch loop",
            report["environment"]["torch"],
            f"N = {each['teachers']}, {each['architecture']}",
            "images per second of a step",
            each["cached"]["images_per_second"],
            each["plain"]["images_per_second"],
            "images/s",
            better="higher",
            note=DISTILLATION,
        )


def _report(study: str) -> Any:
    return json.loads((STUDIES / study / "report.json").read_text(encoding="utf-8"))
