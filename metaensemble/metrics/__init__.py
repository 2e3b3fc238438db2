"""Metrics: what a model is worth and what it costs.

Quality is measured on log-probabilities ``(batch, classes)`` and int64 labels
``(batch,)``. Every function returns a Python number; fractions are never percent.
Only the uncertainty of predictions is a number per image.
"""

from metaensemble.metrics.accuracy import accuracy, top_k
from metaensemble.metrics.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from metaensemble.metrics.cost import latency_ms, macs, parameters, peak_memory_mb
from metaensemble.metrics.diversity import disagreement
from metaensemble.metrics.fidelity import agreement, kl_each, kl_to
from metaensemble.metrics.measure import Measured, measure
from metaensemble.metrics.scores import brier, brier_each, nll
from metaensemble.metrics.uncertainty import (
    Uncertainty,
    dirichlet_uncertainty,
    ensemble_uncertainty,
)

__all__ = [
    "Measured",
    "Uncertainty",
    "accuracy",
    "agreement",
    "brier",
    "brier_each",
    "dirichlet_uncertainty",
    "disagreement",
    "ensemble_uncertainty",
    "expected_calibration_error",
    "fit_temperature",
    "kl_each",
    "kl_to",
    "latency_ms",
    "macs",
    "measure",
    "nll",
    "parameters",
    "peak_memory_mb",
    "reliability",
    "top_k",
]
