from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from metaensemble.report import Report
from metaensemble.report.curves import MOST_CLASSES, class_figure, headroom_figure
from metaensemble.report.intervals import ClassRow

Make = Callable[..., Report]


def words(svg: str | None) -> list[str]:
    assert svg is not None
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]


def rows(count: int) -> list[ClassRow]:
    return [
        ClassRow(name=f"c{i}", count=10, student=i / count, ensemble=0.0)
        for i in range(count)
    ]


@pytest.mark.parametrize("effort", ["train_images", "train_seconds"])
def test_a_headroom_figure_needs_two_efforts(make: Make, effort):
    one = [make(cost={"train_images": 5, "train_seconds": 1.0})]
    assert headroom_figure(one, effort) is None
    cost = {"train_images": 9, "train_seconds": 2.0}
    found = words(headroom_figure([*one, make(name="dkd", cost=cost)], effort))
    assert {"kd", "dkd", "headroom recovered, %"} <= set(found)


def test_a_training_curve_makes_a_figure_of_one_run(make: Make, findings):
    history = [{"images": i, "accuracy": 0.85 + i / 1000} for i in (0, 50, 100)]
    diagnosis = findings["diagnosis"]
    assert headroom_figure([make(history=history)], "train_images") is None
    one = [make(history=history, diagnosis=diagnosis)]
    assert "kd" in words(headroom_figure(one, "train_images"))
    assert headroom_figure(one, "train_seconds") is None
    noise = diagnosis.model_copy(update={"headroom_error": 0.2})
    noisy = [make(history=history, diagnosis=noise)]
    assert headroom_figure(noisy, "train_images") is None


def test_many_methods_still_fit(make: Make):
    reports = [
        make(0.9 + i / 1000, method={"name": "kd", "t": i}, cost={"train_images": i})
        for i in range(12)
    ]
    found = words(headroom_figure(reports, "train_images"))
    assert sum(word.startswith("kd (t=") for word in found) == 8


def test_the_classes_that_change_most_are_shown(make: Make):
    assert class_figure(make()) is None
    found = words(class_figure(make(per_class=rows(3))))
    assert {"c0 (10)", "c1 (10)", "c2 (10)"} <= set(found)
    many = words(class_figure(make(per_class=rows(100))))
    shown = [word for word in many if word.startswith("c")]
    assert len(shown) == MOST_CLASSES
    assert "c99 (10)" in shown
