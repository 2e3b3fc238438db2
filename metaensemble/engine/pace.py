"""How long a training still takes, from what its steps and validations took so far."""

from dataclasses import dataclass
from statistics import median_low

VALIDATIONS = 10
"""How often a training is validated after its first step; `fit` does it at tenths."""
STRETCHES = 200
"""About how many stretches of steps are told apart, whatever the length of a run."""
WARM = 1.5
"""First steps that take so many times the usual time warm up and foretell nothing."""


@dataclass
class _Stretch:
    """Some steps and the time that they took."""

    end: int
    steps: int
    seconds: float


class Pace:
    """Estimates the seconds that a run of `total` steps still takes.

    Costs that come again are told apart: a step costs `step_seconds`, and each tenth
    of the run ends with a validation if `validated` was ever called. What is recent
    counts most: the weight of a step halves with each tenth of the run. A slow
    beginning (the first step compiles, caches are cold) is left out.

    Time is given, never read: any clock will do that is monotonic and in seconds.

    Args:
        total: steps of the whole run.
        done: steps that an earlier session did.
        now: the time.
        validation: seconds that a validation took in earlier sessions, 0 for unknown;
            it counts until this session has seen one.
    """

    def __init__(self, total: int, done: int, now: float, validation: float = 0.0):
        self._total, self._first, self._validation = total, done, validation
        self._done, self._now = done, now
        self._plain: list[_Stretch] = []
        self._validated: list[_Stretch] = []

    def observe(self, done: int, now: float) -> None:
        """Take notice that `done` steps are done."""
        steps, seconds = self._advance(done, now)
        if not steps:
            return
        last = self._plain[-1] if len(self._plain) > 1 else None
        if last is None or last.steps * STRETCHES >= self._total:
            self._plain.append(_Stretch(done, steps, seconds))
        else:
            last.end, last.steps = done, last.steps + steps
            last.seconds += seconds

    def validated(self, done: int, now: float) -> None:
        """Take notice that `done` steps and a validation after them are done."""
        steps, seconds = self._advance(done, now)
        self._validated.append(_Stretch(done, steps, seconds))

    @property
    def step_seconds(self) -> float | None:
        """Return what a step takes at present, validations apart; None if unknown."""
        rows = self._plain
        if rows:
            usual = median_low([row.seconds / row.steps for row in rows])
            slow = [row.seconds / row.steps > WARM * usual for row in rows]
            rows = rows[slow.index(False) :]
        else:  # every step is followed by a validation
            rows = [row for row in self._validated if row.steps]
        steps = seconds = 0.0
        for row, weight in zip(rows, self._weights(rows), strict=True):
            steps += weight * row.steps
            seconds += weight * row.seconds
        return seconds / steps if steps else None

    @property
    def left(self) -> float | None:
        """Return the seconds left; None as long as only a first step is known."""
        if self._done >= self._total:
            return 0.0
        step = self.step_seconds
        known = self._done - self._first
        if step is None or (len(self._plain) < 2 and known * 10 < self._total):
            return None
        steps = self._total - self._done
        validations = self._marks(self._total) - self._marks(self._done)
        return step * steps + self._validation_seconds(step) * validations

    def _advance(self, done: int, now: float) -> tuple[int, float]:
        steps, seconds = done - self._done, now - self._now
        self._done, self._now = done, now
        return steps, seconds

    def _validation_seconds(self, step: float) -> float:
        if not self._plain:  # `step` has them in it
            return 0.0
        rows = self._validated[1:] or self._validated  # the first may warm up
        if not rows:
            return self._validation
        extra = [max(0.0, row.seconds - step * row.steps) for row in rows]
        weights = self._weights(rows)
        together = sum(w * e for w, e in zip(weights, extra, strict=True))
        return together / sum(weights)

    def _weights(self, rows: list[_Stretch]) -> list[float]:
        return [0.5 ** (10 * (self._done - row.end) / self._total) for row in rows]

    def _marks(self, done: int) -> int:
        """Return how many validations the first `done` steps have after them."""
        return done * min(VALIDATIONS, self._total) // self._total
