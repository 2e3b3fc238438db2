"""How sure the figures of a test set are: 95 % intervals over its images.

They tell what another test set of the same kind and size might have said of the same
networks; what other seeds might have made of the same method is told by several runs.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from metaensemble.report.predictions import Predictions
from metaensemble.report.row import Row

RESAMPLES = 1000
Z = 1.959963984540054
"""Standard normal quantile of 0.975."""


class Interval(Row):
    """From the 2.5 % to the 97.5 % point."""

    low: float
    high: float


class Estimate(Interval):
    """A mean and its interval."""

    mean: float
    count: int
    """Test images, or runs, that it rests on."""


class Intervals(Row):
    """95 % intervals over test images of a run's figures.

    By metric: accuracy by Wilson's score interval; nll and brier by the percentiles of
    a bootstrap over images, differences likewise, paired. None for the ECE, which
    resampling biases upwards.
    """

    student: dict[str, Interval]
    ensemble: dict[str, Interval]
    student_minus_ensemble: dict[str, Interval]
    student_minus_best_member: dict[str, Interval]


class ClassRow(Row):
    """Test accuracy on the images of one class."""

    name: str
    count: int
    """Test images of the class, at least 1."""
    student: float
    ensemble: float


def intervals_of(predictions: Predictions) -> Intervals:
    """Return the intervals of a run's figures; the same for the same predictions."""
    models = ("student", "ensemble", "best_member")
    columns = [
        score(model)
        for score in (predictions.right, predictions.nll, predictions.brier)
        for model in models
    ]
    means = resampled_means(columns)
    accuracy, nll, brier = means[:, :3], means[:, 3:6], means[:, 6:]

    def own(place: int) -> dict[str, Interval]:
        right = columns[place]
        return {
            "accuracy": wilson(float(right.sum()), len(right)),
            "nll": percentiles(nll[:, place]),
            "brier": percentiles(brier[:, place]),
        }

    def against(place: int) -> dict[str, Interval]:
        scores = {"accuracy": accuracy, "nll": nll, "brier": brier}
        return {k: percentiles(v[:, 0] - v[:, place]) for k, v in scores.items()}

    return Intervals(
        student=own(0),
        ensemble=own(1),
        student_minus_ensemble=against(1),
        student_minus_best_member=against(2),
    )


def per_class(predictions: Predictions) -> list[ClassRow]:
    """Return the accuracy of student and ensemble on each class that has images."""
    student, ensemble = predictions.right("student"), predictions.right("ensemble")
    rows = []
    for place, name in enumerate(predictions.classes):
        own = predictions.labels == place
        if bool(own.any()):
            rows.append(
                ClassRow(
                    name=name,
                    count=int(own.sum()),
                    student=float(student[own].mean()),
                    ensemble=float(ensemble[own].mean()),
                )
            )
    return rows


def wilson(right: float, count: int) -> Interval:
    """Return the score interval of a fraction (Wilson 1927); it never leaves [0, 1]."""
    share = right / count
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return Interval(
        low=min(share, max(0.0, (middle - half) / scale)),
        high=max(share, min(1.0, (middle + half) / scale)),
    )


def resampled_means(
    columns: Sequence[Float[Tensor, " images"]], seed: int = 0
) -> NDArray[np.float64]:
    """Return the means of each column over `RESAMPLES` bootstrap samples of the images.

    All columns share the samples, so that differences of them are paired.

    Returns:
        float64 (resamples, columns).
    """
    values = np.stack([column.double().numpy() for column in columns], axis=1)
    count = len(values)
    random = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, len(columns)))
    for row in means:  # one sample of the images in memory at a time
        drawn = np.bincount(random.integers(count, size=count), minlength=count)
        row[:] = drawn @ values / count
    return means


def percentiles(values: NDArray[np.float64]) -> Interval:
    """Return the interval that holds the middle 95 % of the values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(low=float(low), high=float(high))


def over_runs(differences: Sequence[float]) -> Estimate | None:
    """Return the mean of paired differences, one per run, and Student's t interval.

    None for fewer than two runs.
    """
    count = len(differences)
    if count < 2:
        return None
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, 0.975)) * error
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=count)
