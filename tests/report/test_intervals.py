from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from metaensemble.report.intervals import (
    Interval,
    intervals_of,
    over_runs,
    per_class,
    resampled_means,
    wilson,
)
from metaensemble.report.predictions import Predictions

Predicted = Callable[..., Predictions]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(50.0, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (10.0, 10, 0.7225, 1.0)],
)
def test_wilsons_interval_has_the_values_of_the_tables(right, count, low, high):
    found = wilson(right, count)
    assert (found.low, found.high) == (
        pytest.approx(low, abs=1e-4),
        pytest.approx(high, abs=1e-4),
    )


def test_the_bootstrap_has_the_standard_error_of_the_mean():
    values = torch.arange(400).double()
    means = resampled_means([values])[:, 0]
    error = float(values.std(correction=0)) / 20
    assert means.std() == pytest.approx(error, rel=0.1)
    assert means.mean() == pytest.approx(float(values.mean()), abs=0.2 * error)


def test_columns_are_resampled_together():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    means = resampled_means([values, values + 1])
    assert means[:, 1] - means[:, 0] == pytest.approx(1)
    assert (resampled_means([values]) == means[:, :1]).all()


def test_intervals_hold_the_figures_and_pairing_narrows_them(predicted: Predicted):
    found = predicted()
    intervals = intervals_of(found)
    for name, scores in (
        ("student", intervals.student),
        ("ensemble", intervals.ensemble),
    ):
        for metric, score in (
            ("accuracy", found.right),
            ("nll", found.nll),
            ("brier", found.brier),
        ):
            assert scores[metric].low < float(score(name).mean()) < scores[metric].high
    assert intervals.student_minus_ensemble["accuracy"].high < 0
    assert intervals.student_minus_best_member["accuracy"].low > 0
    same = {**found.models, "ensemble": found.models["student"]}
    alike = intervals_of(replace(found, models=same))
    assert alike.student_minus_ensemble["nll"] == Interval(low=0, high=0)


def test_each_class_is_counted_by_hand(predicted: Predicted):
    found = predicted()
    rows = per_class(found)
    assert [row.name for row in rows] == list("abcdefghi")
    assert sum(row.count for row in rows) == len(found.labels)
    right = sum(row.student * row.count for row in rows)
    assert right == pytest.approx(float(found.right("student").sum()))
    without = replace(found, classes=(*found.classes, "never seen"))
    assert per_class(without) == rows


def test_students_t_worked_by_hand():
    found = over_runs([0.01, 0.02, 0.03])
    assert found is not None
    half = 4.302653 * 0.01 / 3**0.5
    assert (found.mean, found.count) == (pytest.approx(0.02), 3)
    assert (found.low, found.high) == (
        pytest.approx(0.02 - half),
        pytest.approx(0.02 + half),
    )
    assert over_runs([0.01]) is None
