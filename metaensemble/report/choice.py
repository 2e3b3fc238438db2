"""What was tried, and why one of it is the student; all figures are on validation."""

from pydantic import Field

from metaensemble.report.row import Row

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


class Candidate(Row):
    """One method that was tried."""

    method: str
    """Its name."""
    settings: str = ""
    """How it was run: its start and passes, for those that train."""
    accuracy: float
    nll: float
    ece: float
    kl: float
    """KL(ensemble || candidate)."""
    behind: float
    """Accuracy of the most accurate candidate minus this one's."""
    behind_error: float
    """Standard error of it, paired by images."""
    further: float = 0.0
    """Its KL minus that of the nearest one whose accuracy is not clearly below."""
    further_error: float = 0.0
    """Standard error of it, paired by images."""
    parameters: int
    macs: int
    latency_ms: float
    train_seconds: float
    train_images: int
    dominated: bool
    """Whether another one is at least as good in accuracy, NLL, latency and seconds of
    making, and better in one of them."""


class Choice(Row):
    """The candidates, and which of them was chosen."""

    candidates: list[Candidate]
    """In the order of their costs."""
    chosen: int
    """Place of the student among them."""
    images: int
    """Validation images."""
    best_member: str
    """Name of the member that is best on validation."""
    ensemble_accuracy: float
    below_ensemble: float
    """The ensemble's accuracy minus the student's."""
    below_ensemble_error: float
    """Standard error of it, paired by images."""
    within: float
    """How far below the ensemble a student may be."""
    left_out: list[str] = Field(default_factory=list)
    """What was not tried, and why: a sentence each."""

    @property
    def student(self) -> Candidate:
        """Return the candidate that was chosen."""
        return self.candidates[self.chosen]

    @property
    def keep_member(self) -> bool:
        """Return whether no candidate is worth more than the best member."""
        return self.student.method == "best_member"

    @property
    def keep_ensemble(self) -> bool:
        """Return whether every candidate is clearly too far below the ensemble."""
        return self.below_ensemble - self.below_ensemble_error > self.within

    @property
    def sentence(self) -> str:
        """Return the advice in a sentence or two."""
        tried = len(self.candidates)
        below = (
            f"{100 * self.below_ensemble:.1f} {PLUS_MINUS} "
            f"{100 * self.below_ensemble_error:.1f} points"
        )
        if self.keep_member:
            text = (
                f"Do not bother: of {tried} candidates none is clearly nearer to the "
                f"ensemble than {self.best_member} on {self.images:,} validation "
                "images; ship that member."
            )
        else:
            text = (
                f"Of {tried} candidates {self.student.method} is the one to ship: the "
                f"nearest to the ensemble ({100 * self.student.accuracy:.1f}% where it "
                f"has {100 * self.ensemble_accuracy:.1f}%, on {self.images:,} "
                "validation images)."
            )
        if self.keep_ensemble:
            text += (
                f" If accuracy decides, keep the ensemble: no student comes within "
                f"{100 * self.within:g} points of it ({below} below)."
            )
        return text
