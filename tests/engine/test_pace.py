"""The time left, on simulated runs that call `Pace` as `fit` and `RunLog` do."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from metaensemble.engine.fit import VALIDATIONS as VALIDATIONS_OF_FIT
from metaensemble.engine.pace import VALIDATIONS, Pace

Cost = Callable[[int], float]


def marks(total: int) -> set[int]:
    """Return the steps after which `fit` validates, the one before the first apart."""
    return {math.ceil(total * (i + 1) / 10) for i in range(10)}


@dataclass(frozen=True)
class Seen:
    """What was estimated after `done` steps, and what came."""

    done: int
    left: float | None
    truth: float
    whole: float

    @property
    def error(self) -> float:
        """The relative error; of less than 1 % of the run nothing can be foretold."""
        off = math.inf if self.left is None else abs(self.left - self.truth)
        return off / max(self.truth, 1e-9) if off > 0.01 * self.whole else 0.0


def simulate(
    total: int, cost: Cost, validation: float = 0.0, first: int = 0, known: float = 0.0
) -> list[Seen]:
    """Return what is estimated at each advance, or at each tenth one in long runs."""
    now = began = 1000.0
    pace = Pace(total, first, now, known)
    estimates: list[tuple[int, float | None, float]] = []
    due = marks(total)

    def validate(done: int) -> None:
        nonlocal now
        if validation:
            now += validation
            pace.validated(done, now)

    if first == 0:
        validate(0)
    for step in range(first, total):
        now += cost(step)
        if step + 1 in due:
            validate(step + 1)
        if step % 10 == 0 or step + 1 == total:
            pace.observe(step + 1, now)
            if total <= 1500 or step % 100 == 0:
                estimates.append((step + 1, pace.left, now))
    return [Seen(done, left, now - then, now - began) for done, left, then in estimates]


def worst(seen: list[Seen], since: float) -> float:
    """Return the largest relative error from step `since` to the end."""
    return max(one.error for one in seen if one.done >= since)


RANDOM = random.Random(0)
NOISE = [0.1 * RANDOM.lognormvariate(0, 0.4) for _ in range(5000)]


def constant(step: int) -> float:
    return 0.1


def noisy(step: int) -> float:
    """Each step its own time, with a factor of two now and then."""
    return NOISE[step]


def slow_first(step: int) -> float:
    return 20.0 if step == 0 else 0.1


def slow_beginning(step: int) -> float:
    """The first ten steps take 30 times as long as the others."""
    return 3.0 if step < 10 else noisy(step)


def slow_every_seventh(step: int) -> float:
    return 1.0 if step % 7 == 0 else 0.1


LENGTHS = [60, 100, 333, 1000, 1095, 5000]


@pytest.mark.parametrize("total", LENGTHS)
@pytest.mark.parametrize("validation", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("cost", [constant, noisy, slow_first])
def test_after_a_tenth_the_time_left_is_within_a_fifth(total, validation, cost):
    """Validations of no, 30 and 300 steps' length."""
    assert worst(simulate(total, cost, validation), total / 10) < 0.2


@pytest.mark.parametrize("total", [333, 1000, 1095, 5000])
@pytest.mark.parametrize("validation", [0.0, 3.0])
@pytest.mark.parametrize("cost", [slow_beginning, slow_every_seventh])
def test_slow_steps_count_if_they_come_again(total, validation, cost):
    assert worst(simulate(total, cost, validation), total / 10) < 0.2


@pytest.mark.parametrize("total", [1000, 5000])
@pytest.mark.parametrize("validation", [0.0, 3.0])
def test_a_drift_is_followed(total, validation):
    """Nothing tells beforehand of steps that get slower; the bound is looser."""

    def slower(step: int) -> float:
        return 0.1 * (1 + 0.5 * step / total)

    def faster(step: int) -> float:
        return 0.1 * (1.5 - 0.5 * step / total)

    assert worst(simulate(total, slower, validation), total / 10) < 0.2
    assert worst(simulate(total, faster, validation), total / 10) < 0.25


@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_after_a_jump_of_the_pace_a_tenth_mends_the_estimate(factor):
    def jump(step: int) -> float:
        return 0.1 * (factor if step >= 500 else 1)

    seen = simulate(1000, jump, 3.0)
    assert worst(seen, 100) < 0.35
    assert worst(seen, 600) < 0.2


@pytest.mark.parametrize("validation", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("first", [37, 437, 700, 950])
@pytest.mark.parametrize("cost", [noisy, slow_first, constant])
def test_a_resumed_run_knows_of_validations_it_has_not_seen(validation, first, cost):
    """From the first tenth of what was left to the end."""
    total = 1000

    def then(step: int) -> float:
        return cost(step) + (5.0 if step == first else 0.0)  # warms up again

    seen = simulate(total, then, validation, first, validation)
    assert worst(seen, first + (total - first) / 10) < 0.2


def test_without_the_time_of_one_a_resumed_run_needs_a_validation():
    seen = simulate(1000, constant, 3.0, 437)
    assert worst(seen, 501) < 0.2


def test_by_hand():
    pace = Pace(100, 0, 0.0)
    assert pace.left is None
    assert pace.step_seconds is None
    pace.validated(0, 7.0)
    assert pace.left is None
    pace.observe(1, 9.0)  # a first step may be anything
    assert pace.left is None
    pace.observe(5, 13.0)
    assert pace.step_seconds == 1
    assert pace.left == 95 + 10 * 7
    pace.validated(10, 13.0 + 5 + 8)
    assert pace.left == 90 + 9 * 8
    pace.validated(100, 500.0)
    assert pace.left == 0


def test_rows_stay_few():
    """An estimate costs the same however long a run is."""
    pace = Pace(100_000, 0, 0.0)
    for done in range(10, 100_000, 10):
        pace.observe(done, 0.1 * done)
    assert len(pace._plain) < 220
    assert pace.left == pytest.approx(1.0, rel=1e-6)


def test_time_that_stands_still_divides_nothing_by_zero():
    pace = Pace(100, 0, 5.0)
    for done in (1, 1, 11, 21):
        pace.observe(done, 5.0)
    assert pace.left == 0.0
    assert pace.step_seconds == 0.0


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 11, 100, 1095])
def test_it_counts_the_validations_that_fit_does(total):
    assert VALIDATIONS == VALIDATIONS_OF_FIT == 10
    pace = Pace(total, 0, 0.0)
    for done in range(total + 1):
        counted = pace._marks(done)
        assert counted == sum(mark <= done for mark in marks(total))
