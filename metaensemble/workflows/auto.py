"""Which one to ship: candidates from cheap to dear within a budget, one chosen.

Figures are on validation; test data play no part. What was made and planned is kept in
the working folder, so that a run that goes on makes the same choice.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from metaensemble.core.distributed import ToldError
from metaensemble.core.errors import DiskError, InputError
from metaensemble.methods import KD, Auto, TrainedMethod
from metaensemble.metrics import kl_each, kl_to, measure
from metaensemble.models import init_model
from metaensemble.report import Diagnosis
from metaensemble.report.choice import Candidate, Choice
from metaensemble.teachers import Ensemble
from metaensemble.teachers.outputs import network_logits
from metaensemble.workflows.candidates import Kept, Tried, costs_of, dominated
from metaensemble.workflows.diagnosis import best_of, mergeable, standard_error
from metaensemble.workflows.options import Session
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.students import (
    Student,
    distillation_images,
    evaluate_on,
    student_info,
)

Make = Callable[[MethodUnion, Student | None], Student]
"""Makes the student of one method, from what its start has made, if anything."""

ONE_START = ("soup", "greedy_soup", "learned_soup")
"""Mergers of members whose mean of weights is a sensible network."""
APART = ("repair", "regression_merge")
"""Those of other members of one architecture."""
TRAINED = ("kd", "dkd", "meal_v2")
"""Methods that train, in the order in which they are tried: those that recover most at
equal budgets in benchmarks/distillation_small, the least sensitive one first."""
LEAST = 0.1
"""Fewest passes of a training that is tried."""
PROBE = 4
"""How often a step and an answer are timed; the fastest counts."""
CLEAR = 2.0
"""Standard errors by which an accuracy is clearly below another."""
VALIDATIONS = 11
"""Of a training, the first and the last included."""


def auto_student(
    session: Session,
    ensemble: Ensemble,
    method: Auto,
    make: Make,
    diagnosis: Diagnosis | None = None,
    architecture: str | None = None,
) -> tuple[Student, Choice]:
    """Return the student to ship, and what it was chosen from.

    Args:
        session: data, cache, log, seed, folder.
        ensemble: at least two members.
        method: the budget.
        make: makes the student of one method.
        diagnosis: of the members, if known; else only what needs none is merged.
        architecture: of the student, where it is not that of the members; no member
            is a candidate then, and none is merged.

    Raises:
        InputError: the budget allows nothing, or nothing but keeping a member.
    """
    attempts = Attempts(session, ensemble, method, make, architecture)
    attempts.merge(diagnosis)
    attempts.train()
    if len(attempts.tried) < attempts.least:
        raise InputError(attempts.too_small())
    return attempts.chosen()


class Attempts:
    """The candidates that were made so far, and what is left of the budget."""

    def __init__(
        self,
        session: Session,
        ensemble: Ensemble,
        method: Auto,
        make: Make,
        architecture: str | None,
    ) -> None:
        self.session = session
        self.ensemble = ensemble
        self.method = method
        self.make = make
        self.architecture = architecture
        self.tried: list[Tried] = []
        self.left_out: list[str] = []
        self.kept = Kept(session)
        self.spent = 0.0  # seconds, of earlier sessions, too

    @property
    def least(self) -> int:
        """Return the fewest candidates that are a choice; a lone member is none."""
        return 2 if self.architecture is None else 1

    def merge(self, diagnosis: Diagnosis | None) -> None:
        """Try what merges weights without training."""
        if self.architecture is not None:
            return
        self._attempt(make_method("best_member"), "")
        if diagnosis is None:
            return
        if diagnosis.kinship is None:
            self.left_out.append("mergers need members of one architecture")
            return
        for name in ONE_START if mergeable(diagnosis) else APART:
            if not self.kept.remembered(f"time for {name}", lambda: self._left() > 0):
                self.left_out.append(f"{name}: the budget was spent")
                continue
            self._attempt(make_method(name), "")

    def train(self) -> None:
        """Try what trains, with what is left of the budget."""
        for name, passes in self.kept.remembered("plan", self._plan):
            start = self._start()
            how = f"{passes:.3g} passes from {start}"
            made = [tried.student for tried in self.tried if tried.method == start]
            method = make_method(name, epochs=passes, start=start)
            self._attempt(method, how, made[0] if made else None)

    def chosen(self) -> tuple[Student, Choice]:
        """Return the student, and the choice: the nearest to the ensemble."""
        split = self.session.data.validation
        labels = split.labels
        logits = self.session.cache.ensemble_logits(self.ensemble, split)
        target = self.ensemble.log_probs(logits)
        figures = [measure(tried.log_probs, labels) for tried in self.tried]
        right = [(t.log_probs.argmax(1) == labels).double() for t in self.tried]
        top = max(range(len(figures)), key=lambda i: figures[i].accuracy)
        behind = [_paired(right[top] - own) for own in right]
        apart = [kl_each(target, tried.log_probs) for tried in self.tried]
        sound = [i for i, (mean, error) in enumerate(behind) if mean <= CLEAR * error]
        nearest = min(sound, key=lambda i: float(apart[i].mean()))
        further = [_paired(own - apart[nearest]) for own in apart]
        members = [i for i in sound if self.tried[i].method == "best_member"]
        as_near = [i for i in members if further[i][0] <= further[i][1]]
        best = as_near[0] if as_near else nearest
        rows = [
            Candidate(
                method=tried.method,
                settings=tried.settings,
                accuracy=figures[i].accuracy,
                nll=figures[i].nll,
                ece=figures[i].ece,
                kl=float(apart[i].mean()),
                behind=behind[i][0],
                behind_error=behind[i][1],
                further=further[i][0],
                further_error=further[i][1],
                dominated=False,
                **costs_of(self.session, tried.student),
            )
            for i, tried in enumerate(self.tried)
        ]
        whole = (target.argmax(1) == labels).double()
        place, _ = best_of(logits.log_softmax(-1), labels)
        below, below_error = _paired(whole - right[best])
        choice = Choice(
            candidates=[
                row.model_copy(update={"dominated": dominated(row, rows)})
                for row in rows
            ],
            chosen=best,
            images=len(labels),
            best_member=self.ensemble.members[place].name,
            ensemble_accuracy=float(whole.mean()),
            below_ensemble=below,
            below_ensemble_error=below_error,
            within=self.method.within,
            left_out=self.left_out,
        )
        self.session.log.say(choice.sentence)
        total = self.spent
        student = self.tried[best].student
        notes = (
            *student.notes,
            f"all {len(rows)} candidates took {total:.0f} s",
            *self.left_out,
        )
        return replace(student, notes=notes), choice

    def too_small(self) -> str:
        """Return why the budget allows nothing, and what would fit."""
        images = len(distillation_images(self.session))
        least = max(KD().batch_size, round(LEAST * images))
        needed = f"{least}images"
        if self.method.limit.seconds is not None:
            seconds = self.spent + self._seconds_of(KD(epochs=LEAST))
            needed = f"{math.ceil(seconds)}s"
        return (
            "a budget must allow one candidate beside the best member, but "
            f"--budget {self.method.budget} does not; raise it to {needed} or more"
            + "".join(f" ({reason})" for reason in self.left_out)
        )

    def _attempt(
        self, method: MethodUnion, settings: str, start: Student | None = None
    ) -> None:
        """Make a candidate, or find it where it was made before."""
        name = method.name_
        began = time.monotonic()
        try:
            student = self.kept.student(name, lambda: self.make(method, start))
        except InputError as error:
            if _ends_the_run(error):
                raise
            self.left_out.append(f"{name}: {error}")
            return
        # What an earlier session made took what its record says, its start left out.
        before = 0.0 if start is None else start.train_seconds
        took = time.monotonic() - began
        self.spent += max(took, student.train_seconds - before)
        split = self.session.data.validation
        result = evaluate_on(self.session, student.network, student.info, split)
        self.tried.append(Tried(name, settings, student, result.log_probs))
        accuracy = 100 * result.measured.accuracy
        self.session.log.say(f"auto: {name} {settings} {accuracy:.1f}% on validation")
        self.session.log.event("candidate", method=name, settings=settings)

    def _start(self) -> str:
        """Return the candidate without training that is nearest to the ensemble."""
        if self.architecture is not None:
            return "scratch"
        split = self.session.data.validation
        logits = self.session.cache.ensemble_logits(self.ensemble, split)
        target = self.ensemble.log_probs(logits)
        free = [t for t in self.tried if not t.settings]
        return min(free, key=lambda t: kl_to(target, t.log_probs)).method

    def _plan(self) -> list[tuple[str, float]]:
        """Return which methods to train, and for how many passes.

        Another one is tried only where each gets its default number of passes: below
        that more passes gain more than more methods.
        """
        first = make_method(TRAINED[0])
        assert isinstance(first, TrainedMethod)
        whole = self._passes(TRAINED[0], 1.0)
        if whole < LEAST:
            self.left_out.append(f"{TRAINED[0]}: the budget was spent")
            return []
        count = max(1, min(int(whole // first.epochs), len(TRAINED)))
        return [(name, self._passes(name, 1 / count)) for name in TRAINED[:count]]

    def _passes(self, name: str, share: float) -> float:
        """Return the passes that a share of what is left of the budget allows."""
        images = len(distillation_images(self.session))
        limit = self.method.limit
        if limit.images is not None:
            return share * limit.images / images
        seconds = share * self._left()
        low, high = 0.0, 1000.0
        for _ in range(30):
            middle = (low + high) / 2
            method = make_method(name, epochs=max(middle, 1e-6))
            assert isinstance(method, TrainedMethod)
            fits = self._seconds_of(method) <= seconds
            low, high = (middle, high) if fits else (low, middle)
        return round(low, 3)

    def _left(self) -> float:
        """Return the seconds that are left; 1 where the budget is of images."""
        seconds = self.method.limit.seconds
        return 1.0 if seconds is None else seconds - self.spent

    def _seconds_of(self, method: TrainedMethod) -> float:
        """Return what a training will take, by what steps and passes take here."""
        speeds = self.kept.remembered("speeds", self._speeds)
        step, teaching, validation = speeds
        images = len(distillation_images(self.session))
        steps = max(1, method.epochs * images / method.batch_size)
        views = min(max(1.0, method.epochs), method.views or method.epochs)
        asked = views * images * len(self.ensemble)
        return steps * step + asked * teaching + VALIDATIONS * validation

    def _speeds(self) -> list[float]:
        """Return seconds per step, per image and teacher, and per validation."""
        session = self.session
        info = student_info(session, self.ensemble, self.architecture)
        network = init_model(
            info.architecture, len(info.classes), info.input_shape, session.seed
        ).to(session.device)
        images = distillation_images(session)
        few = images.subset(torch.arange(min(KD().batch_size, len(images))))
        inputs = info.normalization(
            few.batch(torch.arange(len(few))).to(session.device)
        )
        times = []
        for _ in range(PROBE):
            began = time.monotonic()
            network.train()(inputs).logsumexp(-1).sum().backward()
            times.append(time.monotonic() - began)
        member = self.ensemble.members[0]
        teacher = member.network()
        answers = []
        for _ in range(PROBE):
            began = time.monotonic()
            network_logits(teacher, member.prepare, few, device=session.device)
            answers.append(time.monotonic() - began)
        teaching = min(answers) / len(few)
        validation = len(session.data.validation) * teaching
        return [min(times), teaching, validation]


def _paired(differences: Tensor) -> tuple[float, float]:
    """Return the mean of one difference per image, and its standard error."""
    # One image's difference is one standard error, up to rounding.
    return float(differences.mean()), standard_error(differences) + 1e-9


def _ends_the_run(error: InputError) -> bool:
    """Return whether an error is no matter of one candidate, here or in process 0."""
    kind = error.kind if isinstance(error, ToldError) else type(error)
    return issubclass(kind, DiskError)
