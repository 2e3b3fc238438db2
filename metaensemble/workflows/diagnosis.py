"""Before the work: are the members worth fusing, and by what?

Cheap: cached logits of the validation split, and two averages of weights.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from metaensemble.alignment import derive_permutations
from metaensemble.core.errors import InputError
from metaensemble.core.method import Method
from metaensemble.metrics import Measured, disagreement, measure
from metaensemble.report import AgainstBest, Barrier, Diagnosis
from metaensemble.teachers import Ensemble, Kinship, OutputCache, kinship
from metaensemble.teachers.member import build_from
from metaensemble.workflows.barrier import (
    architectures_of,
    measure_barrier,
    names_of,
    soup_drop,
)
from metaensemble.workflows.options import Session
from metaensemble.workflows.registry import METHODS

TOLERABLE_DROP = 0.01
"""Loss of accuracy of the mean of all weights that still counts as one basin. In
benchmarks/digits, soups of members of one start lose nothing against their mean member,
those of independent members more than 0.7."""
ROUNDING = 1e-5
"""Nats; by so much a cached NLL may differ from one measured again."""


def diagnose(session: Session, ensemble: Ensemble) -> Diagnosis:
    """Return what validation data tell of the members, and the methods to try.

    Args:
        session: data and cache; the count of the work's own teacher images stays.
        ensemble: at least two members of any architecture.
    """
    cache = OutputCache(session.cache.folder, session.cache.device)
    session = replace(session, cache=cache)
    split = session.data.validation
    logits = cache.ensemble_logits(ensemble, split)
    log_probs = logits.log_softmax(-1)
    right = log_probs.argmax(-1) == split.labels  # (members, images)
    together = ensemble.log_probs(logits).argmax(-1) == split.labels  # (images,)
    gains = together.double() - right.double().mean(0)
    best, measured = best_of(log_probs, split.labels)
    kin, notes = kinship_of(ensemble), []
    barrier: Barrier | None = None
    drop: float | None = None
    if kin is not None:
        try:
            barrier = measure_barrier(session, ensemble, (0.5,))
            drop = barrier.as_given.accuracy_drop
            drop = soup_drop(session, ensemble) if len(ensemble) > 2 else drop
        except InputError as error:
            notes.append(f"no barrier: {error}")
    found = Diagnosis(
        members=len(ensemble),
        architectures=architectures_of(ensemble),
        kinship=kin,
        distance=None if kin is None else relative_distance(ensemble),
        barrier=barrier,
        soup_drop=drop,
        images=len(split),
        mean_member=float(right.double().mean()),
        ensemble=float(together.double().mean()),
        headroom=float(gains.mean()),
        headroom_error=standard_error(gains),
        disagreement=disagreement(log_probs),
        best_member=names_of(ensemble)[best],
        best_member_accuracy=measured.accuracy,
        recommended=[],
        verdict="",
        notes=notes,
    )
    recommended = _recommended(found, ensemble)
    update = {"recommended": recommended, "verdict": _verdict(found, recommended)}
    return found.model_copy(update=update)


def misfit(diagnosis: Diagnosis, method: Method) -> str | None:
    """Return a warning where a method does not fit the members, in one line."""
    if "one start" not in method.needs or mergeable(diagnosis):
        return None
    if diagnosis.soup_drop is not None:
        lost = f"{100 * diagnosis.soup_drop:.1f} points of accuracy"
        why = f"the mean of these members' weights loses {lost}"
    else:
        why = "these members do not share one, or not one architecture"
    better = [name for name in diagnosis.recommended if name != "best_member"]
    return (
        f"warning: {method.name_} averages weights as they are, for members of one "
        f"start, but {why}" + (f"; choose {_or(better)}" if better else "")
    )


def mergeable(diagnosis: Diagnosis) -> bool:
    """Return whether the members' weights may be averaged as they are.

    The mean of all weights decides, if it was measured: it may lose `TOLERABLE_DROP`
    and a binomial standard error; else the kinship decides.
    """
    if diagnosis.kinship is None:
        return False
    if diagnosis.barrier is None or diagnosis.soup_drop is None:
        return diagnosis.kinship.one_start
    variance = diagnosis.mean_member * (1 - diagnosis.mean_member)
    noise = math.sqrt(variance / diagnosis.barrier.images)
    return diagnosis.soup_drop <= TOLERABLE_DROP + noise


def kinship_of(ensemble: Ensemble) -> Kinship | None:
    """Return the members' kinship, None where their weights cannot be compared."""
    if len(ensemble) < 2:
        return None
    try:
        return kinship(ensemble)
    except InputError:
        return None


def relative_distance(ensemble: Ensemble) -> float:
    """Return the mean over pairs of ||a - b|| / ((||a|| + ||b||) / 2).

    Of all weights of two or more dimensions, as the cosine of `kinship`; tensors are
    read one by one, so that no member is in memory as a whole.
    """
    states = ensemble.lazy_states()
    squares = [0.0] * len(states)
    apart = dict.fromkeys(itertools.combinations(range(len(states)), 2), 0.0)
    for name, like in states[0].items():
        if like.ndim < 2 or not like.is_floating_point():
            continue
        tensors = [state[name].float() for state in states]
        for i, tensor in enumerate(tensors):
            squares[i] += float(tensor.square().sum())
        for a, b in apart:
            apart[a, b] += float((tensors[a] - tensors[b]).square().sum())
    norms = [math.sqrt(square) for square in squares]
    return statistics.fmean(
        math.sqrt(square) / max((norms[a] + norms[b]) / 2, 1e-12)
        for (a, b), square in apart.items()
    )


def best_of(
    log_probs: Float[Tensor, "members images classes"],
    labels: Int64[Tensor, " images"],
) -> tuple[int, Measured]:
    """Return which member is best (accuracy, ties: the lower NLL), and its figures."""
    each = [measure(rows, labels) for rows in log_probs]
    return max(
        enumerate(each), key=lambda item: (item[1].accuracy, -item[1].nll, -item[0])
    )


def against_best(
    session: Session,
    ensemble: Ensemble,
    student: Float[Tensor, "images classes"],
) -> tuple[AgainstBest, int]:
    """Return a student beside the member that is best on validation, and which it is.

    Args:
        session: data and cache.
        ensemble: the members.
        student: log-probabilities of the student on the validation split.
    """
    labels = session.data.validation.labels
    logits = session.cache.ensemble_logits(ensemble, session.data.validation)
    log_probs = logits.log_softmax(-1)
    best, member = best_of(log_probs, labels)
    own = measure(student, labels)
    right = (student.argmax(-1) == labels).double()
    difference = right - (log_probs[best].argmax(-1) == labels).double()
    loss = (log_probs[best] - student).gather(1, labels[:, None]).squeeze(1).double()
    tie = own.accuracy == member.accuracy
    found = AgainstBest(
        best_member=names_of(ensemble)[best],
        sha256=ensemble.members[best].sha256,
        member_accuracy=member.accuracy,
        member_nll=member.nll,
        student_accuracy=own.accuracy,
        student_nll=own.nll,
        error=standard_error(difference),
        nll_error=standard_error(loss),
        images=len(labels),
        worse=own.nll > member.nll + ROUNDING
        if tie
        else own.accuracy < member.accuracy,
    )
    return found, best


def standard_error(values: Float64[Tensor, " images"]) -> float:
    """Return the standard error of the mean; 1 for a single value, which tells none."""
    if len(values) < 2:
        return 1.0
    return float(values.std()) / math.sqrt(len(values))


def _recommended(found: Diagnosis, ensemble: Ensemble) -> list[str]:
    """Return registered methods: without training first, then with it."""
    if found.headroom <= found.headroom_error:
        return ["best_member"]
    if found.kinship is None:
        return _known("kd")
    if mergeable(found):
        return [*_known("greedy_soup", "soup")[:1], *_known("kd")]
    merges = _known("regression_merge", "repair", "aligned_soup")[:1]
    return [*(merges if _traceable(ensemble) else ()), *_known("kd")]


def _verdict(found: Diagnosis, recommended: Sequence[str]) -> str:
    room = (
        f"{100 * found.headroom:+.1f} \N{PLUS-MINUS SIGN} "
        f"{100 * found.headroom_error:.1f} points"
    )
    if recommended == ["best_member"]:
        return (
            f"As far as {found.images:,} validation images can tell, the ensemble is "
            f"no better than its mean member ({room}): do not bother, ship "
            f"{found.best_member} (best_member)."
        )
    if found.kinship is None:
        return (
            "These members' weights cannot be merged one by one: distil them with "
            f"{_or(recommended)}."
        )
    *merges, trained = recommended
    if mergeable(found):
        return (
            "The mean of the members' weights keeps their accuracy: try "
            f"{_or(merges)} first, and {trained} if more is wanted."
        )
    apart = (
        "share a start but not a basin"
        if found.kinship.one_start
        else ("are independent")
    )
    without = (
        f"{_or(merges)} merges them without training, often below the best member (see "
        "--fallback); "
        if merges
        else "no method here aligns this network; "
    )
    return (
        f"The members {apart}, so a mean of their weights as they are is no sensible "
        f"network: {without}{trained} trains one student."
    )


def _known(*names: str) -> list[str]:
    return [name for name in names if name in METHODS]


def _traceable(ensemble: Ensemble) -> bool:
    try:
        derive_permutations(build_from(ensemble.info), ensemble.info.input_shape)
    except InputError:
        return False
    return True


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)
