"""What a run finds out beside its student: before, along the way, and after the work.

All of it on validation data; test data play no part here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metaensemble.report.choice import Choice
from metaensemble.report.row import Row
from metaensemble.teachers import Kinship, Member

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
"""Stands before a standard error."""


class Point(Row):
    """A network on the straight line between two members."""

    alpha: float
    """Share of the second member's weights: at 0 the first member, at 1 the second."""
    accuracy: float
    nll: float


class Curve(Row):
    """Networks along the line, and what they lose against its ends.

    The ends are the members themselves; between them batch-norm statistics are
    re-estimated.
    """

    points: list[Point]
    """In order of alpha, both ends included."""
    barrier: float
    """Largest NLL between the ends minus the mean of the ends', in nats (Ainsworth et
    al. 2022, section 2, at the measured points). Below 0, merging helps."""
    accuracy_drop: float
    """Mean accuracy of the ends minus the lowest accuracy between them."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Curve":
        """Return the curve through at least three points, its barrier worked out."""
        first, *inner, last = points
        nll = (first.nll + last.nll) / 2
        accuracy = (first.accuracy + last.accuracy) / 2
        return cls(
            points=list(points),
            barrier=max(point.nll for point in inner) - nll,
            accuracy_drop=accuracy - min(point.accuracy for point in inner),
        )

    @property
    def text(self) -> str:
        """Return the barrier in words."""
        return (
            f"barrier {self.barrier:+.3f} nats, accuracy "
            f"{-100 * self.accuracy_drop:+.1f} points"
        )


class Barrier(Row):
    """The straight line between two members, as they are and aligned."""

    first: str
    second: str
    images: int
    """Validation images on which every point was measured."""
    as_given: Curve
    aligned: Curve | None = None
    """After the second member's hidden units were brought to the order of the
    first's; null where the method does not align."""


class Diagnosis(Row):
    """Whether it pays to make one network of these members, and how."""

    members: int
    architectures: list[str]
    """Distinct ones, sorted."""
    kinship: Kinship | None
    """One start or not; null where the weights cannot be compared."""
    distance: float | None
    """Mean over pairs of ||a - b|| / ((||a|| + ||b||) / 2), of all weights of two or
    more dimensions."""
    barrier: Barrier | None
    """Measured halfway between the first two members."""
    soup_drop: float | None
    """Accuracy of the mean member minus that of the mean of all members' weights."""
    images: int
    """Validation images."""
    mean_member: float
    """Accuracy, as all below."""
    ensemble: float
    headroom: float
    """Ensemble minus mean member."""
    headroom_error: float
    """Standard error of that, from the paired differences per image."""
    disagreement: float
    """Mean over pairs of members of the images on which they decide differently."""
    best_member: str
    best_member_accuracy: float
    recommended: list[str]
    """Methods to try, in this order."""
    verdict: str
    """One or two plain sentences."""
    notes: list[str]
    """What could not be measured, and why."""

    @property
    def lines(self) -> list[str]:
        """Return the evidence and the verdict as plain lines."""
        kin, weights = self.kinship, f"{self.members} members"
        if kin is None:
            weights += f" of {', '.join(self.architectures)}"
        else:
            weights += (
                f" of one start ({_source(kin)})"
                if kin.one_start
                else f", independent ({_source(kin)})"
            )
            weights += f"; cosine of their weights {kin.cosine:.2f}"
        if self.distance is not None:
            weights += f", relative distance {self.distance:.2f}"
        if self.barrier is not None:
            weights += f"; halfway between the first two: {self.barrier.as_given.text}"
        if self.soup_drop is not None and self.members > 2:
            weights += f"; mean of all: accuracy {-100 * self.soup_drop:+.1f} points"
        outputs = (
            f"the ensemble has {100 * self.ensemble:.1f}% on {self.images:,} "
            f"validation images, {100 * self.headroom:+.1f} {PLUS_MINUS} "
            f"{100 * self.headroom_error:.1f} points over its mean member; members "
            f"disagree on {100 * self.disagreement:.1f}%; best is "
            f"{self.best_member} ({100 * self.best_member_accuracy:.1f}%)"
        )
        return [weights, outputs, self.verdict]


class AgainstBest(Row):
    """The student beside the best member, on validation."""

    best_member: str
    sha256: str
    """Of the best member."""
    member_accuracy: float
    member_nll: float
    student_accuracy: float
    student_nll: float
    error: float
    """Standard error of the difference of the accuracies, from the paired differences
    per image."""
    nll_error: float
    """Likewise of the NLL."""
    images: int
    worse: bool
    """Whether the student made is below the member: accuracy, at a tie the NLL."""
    fallback: bool = False
    """Whether the student shipped is the member instead."""

    @property
    def difference(self) -> float:
        """Return student minus best member, on accuracy."""
        return self.student_accuracy - self.member_accuracy

    @property
    def within_noise(self) -> bool:
        """Return whether the difference is within one standard error."""
        if self.difference == 0:
            return abs(self.student_nll - self.member_nll) <= self.nll_error
        return abs(self.difference) <= self.error

    def sentence(self, method: str) -> str:
        """Return the plain clause that a worse student's report opens with."""
        student = f"{100 * self.student_accuracy:.1f}%"
        member = f"{100 * self.member_accuracy:.1f}%"
        by = f"{-100 * self.difference:.1f} {PLUS_MINUS} {100 * self.error:.1f} points"
        if self.difference == 0:
            worse = self.student_nll - self.member_nll
            student += f", NLL {self.student_nll:.4f}"
            member += f", NLL {self.member_nll:.4f}"
            by = f"{worse:.4f} {PLUS_MINUS} {self.nll_error:.4f} nats"
        return (
            f"{method} ({student} on validation) is below the best member, "
            f"{self.best_member} ({member}), by {by}"
        )


def barrier_lines(barrier: Barrier) -> list[str]:
    """Return the barrier of each measured curve in words."""
    between = f"between {barrier.first} and {barrier.second}"
    lines = [f"{between}, as given: {barrier.as_given.text}"]
    if barrier.aligned is not None:
        lines.append(f"{between}, hidden units aligned: {barrier.aligned.text}")
    return lines


@dataclass(frozen=True)
class Findings:
    """What a run found out, for its report."""

    diagnosis: Diagnosis | None = None
    barrier: Barrier | None = None
    against_best: AgainstBest | None = None
    notes: tuple[str, ...] = ()
    others: tuple[Member, ...] = ()
    """Networks that the run made beside the student and the members."""
    trained_together: bool = False
    """Whether the members were trained in this run, the student among them."""
    choice: Choice | None = None
    """What was tried, where the method chose among several."""


def _source(kin: Kinship) -> str:
    return "their records say" if kin.recorded else "judged by the cosine"
