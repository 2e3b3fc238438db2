"""The straight line between two members: what the loss does on the way."""

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.data import Split
from metaensemble.engine import evaluate
from metaensemble.engine.evaluate import STATISTICS_IMAGES
from metaensemble.merging import BestMember, Merged, Merger
from metaensemble.merging.aligning import align
from metaensemble.merging.soup import weighted_soup
from metaensemble.metrics import Measured, macs, measure
from metaensemble.models import has_batchnorm
from metaensemble.report import Barrier, Curve, Point
from metaensemble.teachers import Ensemble, MemberInfo
from metaensemble.teachers.member import build_from
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import network_of

QUARTERS = (0.25, 0.5, 0.75)
MOST_IMAGES = 1000
"""Validation images that are enough for a curve: 1 point of standard error at 90 %."""
FEWEST_IMAGES = 100
"""Fewer would say too little, unless the validation split is that small."""
AFFORDABLE_MACS = {"cpu": 1e12, "cuda": 1e15}
"""Multiply-accumulates that one measurement may take: on one core, two minutes."""


def names_of(ensemble: Ensemble) -> list[str]:
    """Return how texts call the members: by file name, by path if names repeat."""
    names = [member.name for member in ensemble.members]
    if len(set(names)) < len(names):
        return [str(member.path) for member in ensemble.members]
    return names


def architectures_of(ensemble: Ensemble) -> list[str]:
    """Return the distinct architectures of the members, sorted."""
    return sorted({member.info.architecture for member in ensemble.members})


def measure_barrier(
    session: Session,
    ensemble: Ensemble,
    inner: Sequence[float] = QUARTERS,
    *,
    align_seed: int | None = None,
) -> Barrier:
    """Return the barrier between the first two members, on validation.

    Two networks are in memory at a time where the members are not aligned: the ends
    are read from cached outputs, and weights tensor by tensor.

    Args:
        session: data and cache; asks the cache for the members' validation logits.
        ensemble: the first two members are the ends.
        inner: where to measure between them, in (0, 1), rising.
        align_seed: seed of a matching of the second member's units to the first's;
            None leaves the aligned curve out.

    Raises:
        InputError: the members' weights cannot be averaged or aligned, or the network
            is so large that the measurement would take too long.
    """
    pair = ensemble.subset([0, 1])
    pair.one_architecture("members must share one architecture to be averaged")
    curves = 1 if align_seed is None else 2
    split = _affordable(session, pair.info, curves * len(inner))
    first, last = _members_on(session, pair, split)

    def curve(states: Sequence[Mapping[str, Tensor]]) -> Curve:
        points = [_point(0.0, first)]
        for alpha in inner:
            found = _soup_on(session, pair.info, states, [1 - alpha, alpha], split)
            points.append(_point(alpha, found))
        return Curve.of([*points, _point(1.0, last)])

    as_given, aligned = curve(pair.lazy_states()), None
    if align_seed is not None:
        aligned = curve(align(pair, pair.lazy_states(), align_seed))
    names = names_of(ensemble)
    return Barrier(
        first=names[0],
        second=names[1],
        images=len(split),
        as_given=as_given,
        aligned=aligned,
    )


def soup_drop(session: Session, ensemble: Ensemble) -> float:
    """Return how much accuracy the mean of all weights loses against the mean member.

    On validation; negative where the mean of the weights is better.

    Raises:
        InputError: as for `measure_barrier`.
    """
    ensemble.one_architecture("members must share one architecture to be averaged")
    split = _affordable(session, ensemble.info, 1)
    members = _members_on(session, ensemble, split)
    states, weights = ensemble.lazy_states(), [1.0] * len(ensemble)
    soup = _soup_on(session, ensemble.info, states, weights, split)
    return statistics.fmean(m.accuracy for m in members) - soup.accuracy


def barrier_after(
    session: Session, ensemble: Ensemble, method: object
) -> tuple[Barrier | None, tuple[str, ...]]:
    """Return the barrier curve for the report of a method, and notes on what lacks.

    Methods that merge weights get one; those that align hidden units get the curve
    between aligned members, too.
    """
    if not isinstance(method, Merger) or isinstance(method, BestMember):
        return None, ()
    if len(ensemble) < 2 or len(architectures_of(ensemble)) > 1:
        return None, ()
    seed = getattr(method, "matching_seed", 0) if aligns(method) else None
    try:
        return measure_barrier(session, ensemble, align_seed=seed), ()
    except InputError as error:
        return None, (f"no barrier curve: {error}",)


def aligns(method: Merger | type[Merger]) -> bool:
    """Return whether a merger brings hidden units to one order: it needs a trace."""
    return any("trace" in need for need in method.needs)


def _affordable(session: Session, info: MemberInfo, networks: int) -> Split:
    """Return as much of the validation split as may be run through `networks`.

    Counted in multiply-accumulates, not in seconds, so that a repeated run does the
    same.
    """
    split, train = session.data.validation, session.data.train
    network = build_from(info)
    each = max(1, macs(network, info.input_shape))
    statistics = min(STATISTICS_IMAGES, len(train)) if has_batchnorm(network) else 0
    kind = "cpu" if session.device.type == "cpu" else "cuda"
    images = int(AFFORDABLE_MACS[kind] / each / networks) - statistics
    wanted = min(len(split), MOST_IMAGES)
    if images < min(FEWEST_IMAGES, wanted):
        raise InputError(
            f"the barrier of a network must be measured within "
            f"{AFFORDABLE_MACS[kind]:.0e} multiply-accumulates, but {each:.1e} an "
            f"image leave {max(0, images)} images; compare soup with best_member"
        )
    if images >= len(split) <= MOST_IMAGES:
        return split
    return split.subset(torch.arange(min(images, wanted)))


def _members_on(session: Session, ensemble: Ensemble, split: Split) -> list[Measured]:
    """Return the members' figures on the first images of the validation split."""
    logits = session.cache.ensemble_logits(ensemble, session.data.validation)
    rows = logits[:, : len(split)].log_softmax(-1)
    return [measure(own, split.labels) for own in rows]


def _soup_on(
    session: Session,
    info: MemberInfo,
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    split: Split,
) -> Measured:
    merged = Merged(weighted_soup(states, weights), info)
    network = network_of(session, merged, stale=True)
    return evaluate(network, info.normalization, split, session.device).measured


def _point(alpha: float, measured: Measured) -> Point:
    return Point(alpha=alpha, accuracy=measured.accuracy, nll=measured.nll)
