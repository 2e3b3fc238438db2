from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from metaensemble.report import Report
from metaensemble.report.figures import (
    accuracy_figure,
    barrier_figure,
    cost_figure,
    reliability_figure,
)

Make = Callable[..., Report]


def words(svg: str | None) -> list[str]:
    assert svg is not None
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]


def test_text_stays_text_and_names_methods_and_references(make: Make):
    found = words(accuracy_figure([make(), make(name="soup <b>")]))
    assert {"kd", "soup <b>", "mean member", "ensemble"} <= set(found)


def test_a_collapsed_method_does_not_squeeze_the_others(make: Make):
    found = words(accuracy_figure([make(), make(0.11, name="soup")]))
    assert "11.0" in found
    ticks = [float(w) for w in found if w.isdigit()]
    assert min(ticks) > 70


@pytest.mark.parametrize("cost", ["latency_ms", "train_images"])
def test_a_cost_figure_needs_two_costs(make: Make, cost):
    one = [make(cost={"latency_ms": 1.0, "train_images": 5})]
    assert cost_figure(one, cost) is None
    two = [*one, make(name="dkd", cost={"latency_ms": 2.0, "train_images": 9})]
    assert {"kd", "dkd"} <= set(words(cost_figure(two, cost)))


def test_a_reliability_figure_needs_bins(make: Make):
    assert reliability_figure(make(reliability=None)) is None
    assert {"student", "ensemble"} <= set(words(reliability_figure(make())))


def test_a_barrier_figure_needs_a_barrier(make: Make, findings):
    assert barrier_figure(make()) is None
    found = words(barrier_figure(make(**findings)))
    assert {"as given", "aligned", "accuracy, %", "NLL, nats", "second"} <= set(found)
    alone = findings["barrier"].model_copy(update={"aligned": None})
    assert "aligned" not in words(barrier_figure(make(barrier=alone)))


def test_figures_are_deterministic(make: Make):
    assert accuracy_figure([make()]) == accuracy_figure([make()])
