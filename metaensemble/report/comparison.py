"""Runs side by side: differences between methods, paired, each with its interval.

Over test images: resampled with both models on the same images; of several runs of a
method, the mean over them. Over runs: paired by seed, draw and teachers. Each interval
stands for itself; with many of them, one in twenty misses.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from metaensemble.report.aggregate import by_setting, grouped
from metaensemble.report.intervals import (
    Estimate,
    over_runs,
    percentiles,
    resampled_means,
)
from metaensemble.report.predictions import Predictions
from metaensemble.report.row import Row
from metaensemble.report.schema import SCHEMA, Report

Metric = Literal["accuracy", "nll"]
METRICS: tuple[Metric, ...] = ("accuracy", "nll")
Beside = Literal["ensemble", "best member", "leader"]
BESIDE: tuple[Beside, ...] = ("ensemble", "best member", "leader")


class Difference(Row):
    """A method minus something beside it, on test."""

    setting: str
    method: str
    """Its label in the table."""
    beside: Beside
    """The method's own ensemble; its own best member on test; or the leader: the
    method of the setting that is most accurate on test."""
    metric: Metric
    over_images: Estimate | None
    """None where a run has no predictions."""
    over_runs: Estimate | None
    """None where fewer than two runs pair."""


class Comparison(Row):
    """The file of `compare`."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    rows: list[Report]
    differences: list[Difference]


def differences(
    reports: Sequence[Report], predictions: Sequence[Predictions | None]
) -> list[Difference]:
    """Return every method beside its ensemble, its best member and the leader.

    Args:
        reports: of one or several settings, on the same data.
        predictions: of each report; runs may lack them.
    """
    result = []
    kept = {
        id(report): predicted
        for report, predicted in zip(reports, predictions, strict=True)
        if predicted is not None
    }
    for setting, group in by_setting(reports).items():
        methods = grouped(group)
        leader = methods[0][1]
        wanted: list[tuple[str, list[Report], Beside]] = []
        for label, part in methods:
            for beside in BESIDE:
                if beside != "leader" or part is not leader:
                    wanted.append((label, part, beside))
        for metric in METRICS:
            paired = _over_images(wanted, leader, metric, kept)
            result += [
                Difference(
                    setting=setting,
                    method=label,
                    beside=beside,
                    metric=metric,
                    over_images=estimate,
                    over_runs=over_runs(_pairs(part, leader, beside, metric)),
                )
                for (label, part, beside), estimate in zip(wanted, paired, strict=True)
            ]
    return result


def _over_images(
    wanted: Sequence[tuple[str, list[Report], Beside]],
    leader: Sequence[Report],
    metric: Metric,
    kept: Mapping[int, Predictions],
) -> list[Estimate | None]:
    """Return the bootstrap interval of each difference; all share the samples."""
    columns: dict[int, Float[Tensor, " images"]] = {}
    for place, (_, part, beside) in enumerate(wanted):
        first = _mean_score(part, "student", metric, kept)
        second = (
            _mean_score(leader, "student", metric, kept)
            if beside == "leader"
            else _mean_score(part, beside.replace(" ", "_"), metric, kept)
        )
        if first is not None and second is not None:
            columns[place] = first - second
    if not columns:
        return [None] * len(wanted)
    means = resampled_means(list(columns.values()))
    found: list[Estimate | None] = [None] * len(wanted)
    for number, (place, column) in enumerate(columns.items()):
        interval = percentiles(means[:, number])
        found[place] = Estimate(
            mean=float(column.mean()),
            low=interval.low,
            high=interval.high,
            count=len(column),
        )
    return found


def _mean_score(
    part: Sequence[Report],
    model: str,
    metric: Metric,
    kept: Mapping[int, Predictions],
) -> Float[Tensor, " images"] | None:
    """Return the score of each image, the mean over runs; None if one has none."""
    rows = []
    for report in part:
        own = kept.get(id(report))
        if own is None:
            return None
        rows.append(own.right(model) if metric == "accuracy" else own.nll(model))
    return torch.stack(rows).mean(0)


def _pairs(
    part: Sequence[Report], leader: Sequence[Report], beside: Beside, metric: Metric
) -> list[float]:
    """Return the difference of each run, from the one that it pairs with."""
    if beside == "ensemble":
        return [_test(r, metric) - getattr(r.ensemble.test, metric) for r in part]
    if beside == "best member":
        return [_test(r, metric) - getattr(r.best_teacher.test, metric) for r in part]
    own, theirs = _by_pair(part), _by_pair(leader)
    return [
        _test(report, metric) - _test(theirs[key], metric)
        for key, report in own.items()
        if key in theirs
    ]


def _test(report: Report, metric: Metric) -> float:
    return getattr(report.student.test, metric)


def _by_pair(part: Sequence[Report]) -> dict[tuple[object, ...], Report]:
    """Return the runs by what pairs them; a pair that occurs twice is none."""
    keys = [(r.seed, r.draw, *sorted(t.sha256 for t in r.teachers)) for r in part]
    return {
        key: report
        for key, report in zip(keys, part, strict=True)
        if keys.count(key) == 1
    }
