from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from metaensemble.report import Report
from metaensemble.report.comparison import Difference, differences
from metaensemble.report.leaderboard import (
    difference_table,
    lead,
    leaderboard_markdown,
)
from metaensemble.report.predictions import Predictions

Make = Callable[..., Report]
Predicted = Callable[..., Predictions]


def one(found: list[Difference], method: str, beside: str, metric: str = "accuracy"):
    (match,) = [
        d for d in found if (d.method, d.beside, d.metric) == (method, beside, metric)
    ]
    return match


@pytest.fixture
def runs(make: Make) -> list[Report]:
    """kd leads soup by 1, 2 and 3 points over three seeds."""
    return [
        make(accuracy, name, seed=seed)
        for name, accuracies in (
            ("kd", (0.96, 0.96, 0.96)),
            ("soup", (0.95, 0.94, 0.93)),
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def test_runs_are_paired_by_their_seed(runs: list[Report]):
    found = differences(runs, [None] * len(runs))
    gap = one(found, "soup", "leader").over_runs
    assert gap is not None
    assert (gap.mean, gap.count) == (pytest.approx(-0.02), 3)
    assert gap.high - gap.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)
    ensemble = one(found, "kd", "ensemble").over_runs
    assert ensemble is not None
    assert ensemble.mean == pytest.approx(-0.02)
    assert not [d for d in found if d.method == "kd" and d.beside == "leader"]


def test_runs_of_other_seeds_do_not_pair(make: Make):
    runs = [make(0.96), make(0.96, seed=1), make(0.95, "soup", seed=5)]
    assert (
        one(differences(runs, [None] * len(runs)), "soup", "leader").over_runs is None
    )
    twice = [make(0.96), make(0.96), make(0.95, "soup"), make(0.95, "soup", seed=1)]
    assert one(differences(twice, [None] * 4), "soup", "leader").over_runs is None


def test_images_are_paired_and_averaged_over_runs(runs, predicted: Predicted):
    kept = [predicted(i) for i in range(6)]
    found = one(differences(runs, kept), "soup", "leader").over_images
    assert found is not None
    kd, soup = (
        torch.stack([one.right("student") for one in part]).mean(0)
        for part in (kept[:3], kept[3:])
    )
    assert found.mean == pytest.approx(float((soup - kd).mean()))
    assert found.low < found.mean < found.high
    assert found.count == 200
    nll = one(differences(runs, kept), "kd", "best member", "nll").over_images
    assert nll is not None
    assert nll.high < 0


def test_a_run_without_predictions_leaves_its_methods_interval_out(runs, predicted):
    kept = [predicted(i) for i in range(6)]
    found = differences(runs, [*kept[:5], None])
    assert one(found, "soup", "leader").over_images is None
    assert one(found, "kd", "ensemble").over_images is not None


def test_comparisons_are_deterministic(runs, predicted: Predicted):
    kept = [predicted(i) for i in range(6)]
    assert differences(runs, kept) == differences(runs, kept)


def test_the_lead_says_whether_it_may_be_chance(runs: list[Report], make: Make):
    found = lead(differences(runs, [None] * len(runs)))
    assert found is not None
    assert "The lead of kd over the next, soup, may be chance: +2.0 points" in found
    assert "interval -0.5 to +4.5 over 3 runs" in found
    far = [r for r in runs if r.method["name"] == "kd"] + [
        make(0.7, "soup", seed=seed) for seed in range(3)
    ]
    assert "is more than chance: +26.0 points" in (
        lead(differences(far, [None] * 6)) or ""
    )
    assert lead(differences([make()], [None])) is None
    two = [*far, make(regime="one-start")]
    assert lead(differences(two, [None] * 7)) is None


def test_the_tables_hold_the_same_numbers(runs: list[Report]):
    found = differences(runs, [None] * len(runs))
    text = leaderboard_markdown(runs, found)
    (row,) = [x for x in text.splitlines() if x.startswith("| soup | leader")]
    assert row == r"| soup | leader | - | -2.0 \[-4.5, +0.5\] | - |"
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(difference_table(found))
    (line,) = [x for x in capture.get().splitlines() if "leader  " in x]
    assert line.split() == ["soup", "leader", "-", "-2.0", "[-4.5,", "+0.5]"]
