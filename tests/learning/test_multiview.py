"""The project's ground truth: in the multi-view world theory says what must happen.

Allen-Zhu and Li (arXiv 2012.09816), theorems 1 to 4, at a third of the seeds and half
of the members of benchmarks/multiview.
"""

import importlib
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "multiview"
SEEDS = (100, 101, 102)
MEMBERS = 5


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """benchmarks/multiview/run.py as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("run", "study", "learners"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def rows(study: ModuleType):
    """The figures of every arm on three draws, about four minutes of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    setting = replace(study.SETTING, members=MEMBERS, self_students=MEMBERS)
    arms = [arm for arm in study.ARMS if arm != "joint mean"]
    yield [row for seed in SEEDS for row in study.drawn(seed, setting, arms)]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mean(study: ModuleType, rows):
    """Returns the mean of an arm's figure over the draws."""

    def of(arm: str, figure: str = "test") -> float:
        return statistics.mean(study.per_draw(rows, arm, figure))

    return of


def test_the_table_is_the_report(study: ModuleType):
    report = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))
    text = (FOLDER / "table.md").read_text(encoding="utf-8")
    assert text == study.table(report["rows"])
    assert {row["draw"] for row in report["rows"]} == set(study.SEEDS)


def test_intervals_are_those_of_student(study: ModuleType):
    # t of 2 degrees of freedom is 4.303, the deviation 1
    mean, half = study.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))


@pytest.mark.slow
def test_single_networks_err_on_single_view_images(mean):
    assert mean("single", "multi_view") > 0.98
    assert mean("single", "single_view") < 0.9
    assert mean("single", "features_learned") < 0.95


@pytest.mark.slow
def test_the_order_is_that_of_the_theory(study: ModuleType, rows, mean):
    order = ["single", "self-distilled", "distilled"]
    for figure in ("test", "single_view", "features_learned"):
        figures = [mean(arm, figure) for arm in order]
        assert figures == sorted(figures), figure
    for arm in ("ensemble", "distilled"):
        gains = study.gains(rows, arm, "single", "single_view")
        assert min(gains) > 0, arm
        assert statistics.mean(gains) > 0.05, arm


@pytest.mark.slow
def test_distillation_recovers_more_than_half_of_the_ensembles_gain(mean):
    headroom = mean("ensemble") - mean("single")
    assert mean("distilled") - mean("single") > 0.5 * headroom


@pytest.mark.slow
def test_training_together_is_no_ensemble(mean):
    headroom = mean("ensemble") - mean("single")
    assert mean("joint sum") - mean("single") < 0.5 * headroom


@pytest.mark.slow
def test_random_features_gain_by_averaging_and_not_by_distillation(mean):
    headroom = mean("random features, ensemble") - mean("random features")
    assert headroom > 0.01
    gain = mean("random features, distilled") - mean("random features")
    assert gain < 0.5 * headroom
