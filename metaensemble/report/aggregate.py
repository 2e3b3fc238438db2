"""Many reports as few lines: means and standard errors over seeds and draws.

Tables, figures and pages are all drawn from these lines, so they show one truth.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from metaensemble.core.config import Config
from metaensemble.metrics.measure import Measured
from metaensemble.report.schema import Report, headroom

Numbers = dict[str, float | None]
Reference = Literal["ensemble", "best member", "mean member"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
COSTS = ("parameters", "macs", "latency_ms", "train_seconds", "train_images")


class Value(Config):
    """A mean over seeds or draws."""

    mean: float
    error: float | None
    """Standard error of the mean; None for one value."""
    count: int


class Line(Config):
    """One line of a comparison: a method, or a reference that methods aim at.

    ``values`` holds accuracy, nll, ece, agreement, recovered (fractions), parameters,
    macs, latency_ms, train_seconds and train_images, as far as they are known.
    """

    setting: str
    """Data, number of teachers and regime: only equal settings compare."""
    kind: Reference | Literal["method"]
    label: str
    count: int
    """Number of reports behind the line; of teacher sets for a reference."""
    values: dict[str, Value]


def setting_of(report: Report) -> str:
    """Return what must be equal for two reports to be compared, in words."""
    data, regime = report.data, f", {report.regime}" if report.regime else ""
    many = len(report.teachers)
    teachers = f"{many} teacher" + ("s" if many != 1 else "")
    return f"{data.name} ({data.train:,} training images), {teachers}{regime}"


def by_setting(reports: Iterable[Report]) -> dict[str, list[Report]]:
    """Return the reports grouped by `setting_of`, in order of first appearance."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        groups.setdefault(setting_of(report), []).append(report)
    return groups


def by_method(reports: Sequence[Report]) -> list[list[Report]]:
    """Return the reports grouped by setting, method, stage and fallback.

    Of a method, all hyperparameters count.
    """
    same: dict[tuple[str, str, str, bool], list[Report]] = {}
    for report in reports:
        method = json.dumps(report.method, sort_keys=True)
        key = (setting_of(report), method, report.stage or "", report.fell_back)
        same.setdefault(key, []).append(report)
    return list(same.values())


def aggregate(reports: Sequence[Report]) -> list[Line]:
    """Return one line per setting, method and stage: mean and standard error.

    Reports of one method with other hyperparameters make another line, whose label
    names what differs. Lines of one setting stand together, best accuracy first.
    """
    return [
        Line(
            setting=setting,
            kind="method",
            label=label,
            count=len(part),
            values=_values([_method(report) for report in part]),
        )
        for setting, group in by_setting(reports).items()
        for label, part in grouped(group)
    ]


def grouped(reports: Sequence[Report]) -> list[tuple[str, list[Report]]]:
    """Return label and reports of each method of one setting, best accuracy first."""
    same = by_method(reports)
    methods = [part[0].method for part in same]
    same.sort(key=lambda part: -statistics.fmean(_accuracy(r) for r in part))
    return [(_label(part[0], methods), part) for part in same]


def references(reports: Sequence[Report]) -> list[Line]:
    """Return ensemble, best member and mean member of each setting.

    A set of teachers counts once, however many students it has.
    """
    result = []
    for setting, group in by_setting(reports).items():
        distinct = {
            tuple(t.sha256 for t in report.teachers): report for report in group
        }
        rows: dict[Reference, list[Numbers]] = {kind: [] for kind in REFERENCES}
        for report in distinct.values():
            ensemble = _reference(report, report.ensemble.test)
            ensemble["agreement"] = 1.0
            ensemble["latency_ms"] = report.cost.ensemble_latency_ms
            rows["ensemble"].append(ensemble)
            rows["best member"].append(_reference(report, report.best_teacher.test))
            rows["mean member"].append(_reference(report, report.mean_teacher.test))
        for kind, numbers in rows.items():
            result.append(
                Line(
                    setting=setting,
                    kind=kind,
                    label=kind,
                    count=len(numbers),
                    values=_values(numbers),
                )
            )
    return result


def lines(reports: Sequence[Report]) -> list[Line]:
    """Return references, then methods, setting by setting."""
    return [
        line
        for group in by_setting(reports).values()
        for line in (*references(group), *aggregate(group))
    ]


def _reference(report: Report, measured: Measured) -> Numbers:
    room = headroom(measured, report.mean_teacher.test, report.ensemble.test)
    return _quality(measured) | {"recovered": room.recovered}


def _accuracy(report: Report) -> float:
    return report.student.test.accuracy


def _method(report: Report) -> Numbers:
    return (
        _quality(report.student.test)
        | {"agreement": report.fidelity.agreement}
        | {"recovered": report.headroom.recovered}
        | report.cost.model_dump(include=set(COSTS))
    )


def _quality(measured: Measured) -> Numbers:
    return {"accuracy": measured.accuracy, "nll": measured.nll, "ece": measured.ece}


def _values(rows: Sequence[Numbers]) -> dict[str, Value]:
    result = {}
    for name in rows[0]:
        known = [value for row in rows if (value := row[name]) is not None]
        if known:
            count = len(known)
            spread = statistics.stdev(known) / math.sqrt(count) if count > 1 else None
            result[name] = Value(
                mean=statistics.fmean(known), error=spread, count=count
            )
    return result


def _label(report: Report, methods: Sequence[dict[str, Any]]) -> str:
    """Return name, hyperparameters unlike others', stage and fallback."""
    method = report.method
    rivals = [m for m in methods if m["name"] == method["name"]]
    odd = [k for k in method if any(m.get(k) != method[k] for m in rivals)]
    apart = ", ".join(f"{key}={_brief(method[key])}" for key in odd)
    label = f"{method['name']} ({apart})" if apart else method["name"]
    label = f"{label}, {report.stage}" if report.stage else label
    return f"{label}, fell back" if report.fell_back else label


def _brief(value: Any) -> str:
    """Return a hyperparameter as text, a long fraction cut to four digits."""
    text = str(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > 8 else text
