"""Conditioning: does a predictor's student listen to its teachers?

A generator can ignore its teachers and write one good student of the data set, or owe
all of their influence to its reference, to which the Transformer adds nothing of
theirs. Both are told by students of several disjoint ensembles: with K[i, j] = KL(
ensemble j || student i), the mean over the images of the validation split,

* ``own_kl``: mean of K[i, i], in nats as all that follow; ``other_kl``: of the rest;
* ``gain``: mean over pairs of (K[i, j] + K[j, i] - K[i, i] - K[j, j]) / 2. Doubly
  centred, so that an ensemble that is merely easier to match, or a student that is
  merely better, does not count. It equals ``other_kl - own_kl``; the pairs are what its
  error is made of;
* ``gain_error``: its standard error over the ensembles. Absent for two ensembles: they
  make one pair;
* ``reference_gain``: the gain of the references alone (for the direct head, which has
  none, that of the teachers' mean);
* ``reading_gain``: mean over i and j of KL(ensemble i || student of i's reference whose
  Transformer read j's weights and evidence) - K[i, i]: what the Transformer reads
  beyond the reference; ``reading_error``: its standard error, absent for two ensembles;
* ``accuracy``: mean over the students, a fraction; ``accuracy_unrelated``: the same
  with their own references, but untrained networks for the Transformer to read;
* ``ensembles``: how many there are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float64
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import derive_seed
from metaensemble.engine import Evaluation, evaluate
from metaensemble.methods import Reading, reading_for
from metaensemble.metrics import kl_to
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, save_member
from metaensemble.weightformer import Predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.predicting import (
    predicted_student,
    refuse_unfit,
    sources_of,
)
from metaensemble.workflows.students import Student

Pairs = Float64[Tensor, "ensembles ensembles"]
"""A number for each ordered pair of ensembles."""
COMPARED = 4
"""Ensembles at most that a new predictor's conditioning is measured on: the work grows
with their square."""


def conditioning(
    session: Session,
    predictor: Predictor,
    ensembles: Sequence[Ensemble],
    *,
    step: float = 1.0,
) -> dict[str, float]:
    """Return how far a predictor's students depend on their teachers.

    Takes E (E + 2) predictions for E ensembles. One student is in memory at a time;
    teachers are read from their files, unless the predictor has a frame to which all of
    them are brought.

    Args:
        session: data, cache, seed (of the untrained networks).
        predictor: whose students; they are measured as predicted, not tuned.
        ensembles: at least two of one size, no member in two of them.
        step: how far the students go from the reference (0) to the prediction (1).

    Returns:
        The keys above.

    Raises:
        InputError: the ensembles are too few, differ in size, share a member, or do not
            fit the predictor.
    """
    _refuse(ensembles, predictor)
    split, sources = session.data.validation, sources_of(session)
    targets = [e.log_probs(session.cache.ensemble_logits(e, split)) for e in ensembles]
    readings = [reading_for(predictor, e, sources) for e in ensembles]

    def measured(i: int, reading: Reading, step: float) -> Evaluation:
        made = predicted_student(
            session, ensembles[i], predictor, step=step, reading=reading
        )
        return evaluate(made.network, made.info.normalization, split, session.device)

    own: list[Evaluation] = []
    references: list[Evaluation] = []
    unrelated: list[float] = []
    swapped = torch.zeros(len(ensembles), len(ensembles), dtype=torch.float64)
    with TemporaryDirectory() as folder:
        untrained = untrained_ensemble(Path(folder), ensembles[0], session.seed)
        # Their merge would be for nothing: the reference is each ensemble's own.
        cheap = replace(sources, merge=lambda e, _: e.members[0].state())
        strange = reading_for(predictor, untrained, cheap)
        for i, reading in enumerate(readings):
            own.append(measured(i, reading, step))
            references.append(measured(i, reading, 0.0))
            base = predictor.predict(
                reading.states, reading.base, reading.evidence, step=0.0
            )
            for j, other in enumerate(readings):
                if j != i:
                    seen = measured(i, replace(other, base=base), step)
                    swapped[i, j] = kl_to(targets[i], seen.log_probs)
            seen = measured(i, replace(strange, base=base), step)
            unrelated.append(seen.measured.accuracy)
    kl = _divergences(targets, own)
    alone = _divergences(targets, references)
    return {
        **figures(kl, alone, swapped),
        "accuracy": fmean(student.measured.accuracy for student in own),
        "accuracy_unrelated": fmean(unrelated),
        "ensembles": float(len(ensembles)),
    }


def gain_of_students(
    session: Session, students: Sequence[Student], ensembles: Sequence[Ensemble]
) -> dict[str, float]:
    """Return own_kl, other_kl, gain, gain_error and ensembles of any students.

    However they were made: what a predictor's conditioning has to be compared with.

    Args:
        session: data and cache; validation is what is measured on.
        students: one per ensemble, in their order.
        ensembles: at least two.
    """
    split = session.data.validation
    targets = [e.log_probs(session.cache.ensemble_logits(e, split)) for e in ensembles]
    measured = [
        evaluate(s.network, s.info.normalization, split, session.device)
        for s in students
    ]
    kl = _divergences(targets, measured)
    gain, error = mean_and_error(centred(kl))
    values = {
        "own_kl": float(kl.diagonal().mean()),
        "other_kl": mean_and_error(kl)[0],
        "gain": gain,
        "gain_error": error,
        "ensembles": float(len(ensembles)),
    }
    return {name: value for name, value in values.items() if value is not None}


def figures(kl: Pairs, references: Pairs, swapped: Pairs) -> dict[str, float]:
    """Return the figures in nats from the divergences.

    Args:
        kl: KL(ensemble j || student i) at [i, j].
        references: the same for the references alone.
        swapped: KL(ensemble i || student of i's reference that read j) at [i, j]; what
            stands on the diagonal plays no part.
    """
    gain, gain_error = mean_and_error(centred(kl))
    reading, reading_error = mean_and_error(swapped - kl.diagonal()[:, None])
    other, _ = mean_and_error(kl)
    values = {
        "own_kl": float(kl.diagonal().mean()),
        "other_kl": other,
        "gain": gain,
        "gain_error": gain_error,
        "reference_gain": mean_and_error(centred(references))[0],
        "reading_gain": reading,
        "reading_error": reading_error,
    }
    return {name: value for name, value in values.items() if value is not None}


def centred(kl: Pairs) -> Pairs:
    """Return (K[i, j] + K[j, i] - K[i, i] - K[j, j]) / 2 for each pair."""
    own = kl.diagonal()
    return (kl + kl.T - own[:, None] - own[None, :]) / 2


def mean_and_error(pairs: Pairs) -> tuple[float, float | None]:
    """Return the mean over pairs of different ensembles, and its standard error.

    Each ensemble is in many pairs, so that pairs are not independent, and the spread of
    the ensembles' own means over the root of their number would be two times too
    small or more. The error is that of the jackknife: from the means over the pairs
    that each ensemble leaves when it is left out. It is approximate for few ensembles,
    and None for two.
    """
    count = len(pairs)
    others = pairs.clone().fill_diagonal_(0)
    total = others.sum()
    mean = float(total / (count * (count - 1)))
    if count < 3:
        return mean, None
    without = total - others.sum(0) - others.sum(1)
    without = without / ((count - 1) * (count - 2))
    variance = (without - without.mean()).square().sum() * (count - 1) / count
    return mean, float(variance.sqrt())


def with_conditioning(
    session: Session, predictor: Predictor, zoo: Ensemble
) -> Predictor:
    """Return a new predictor, its conditioning noted in its training record.

    Measured on disjoint ensembles of held-out members; if these make less than two, on
    ensembles of training members besides. ``conditioning_ensembles`` counts both. As it
    was, if the zoo makes less than two ensembles.

    Args:
        session: of the training.
        predictor: as `workflows.predict.learn_predictor` made it of `zoo`.
        zoo: training members first.
    """
    record = predictor.info.training
    low, high = record["teachers"]
    size = max(low, min(2, high))  # one network alone is no ensemble
    read = record["members"]
    ensembles = disjoint(zoo.subset(range(read, len(zoo))), size, COMPARED)
    held_out = len(ensembles)
    if held_out < 2:
        known = zoo.subset(range(read))
        ensembles += disjoint(known, size, COMPARED - held_out)
    if len(ensembles) < 2:
        return predictor
    found = {
        "conditioning": conditioning(session, predictor, ensembles),
        "conditioning_ensembles": {
            "size": size,
            "held_out": held_out,
            "training": len(ensembles) - held_out,
        },
    }
    info = predictor.info.model_copy(update={"training": {**record, **found}})
    return replace(predictor, info=info)


def disjoint(members: Ensemble, size: int, most: int | None = None) -> list[Ensemble]:
    """Return the ensembles of `size` that members make in order; the rest is left.

    Args:
        members: what to cut.
        size: members per ensemble.
        most: ensembles to return at most.
    """
    count = len(members) // size
    count = count if most is None else min(count, most)
    return [members.subset(range(i * size, (i + 1) * size)) for i in range(count)]


def untrained_ensemble(folder: Path, like: Ensemble, seed: int) -> Ensemble:
    """Write freshly initialised networks as members into `folder`, as many as `like`'s.

    Their seeds are derived, so that none is the start of a zoo taught with `seed`.
    """
    info = like.info.model_copy(update={"training": {}, "metrics": {}, "start": None})
    members = []
    for i in range(len(like)):
        network = init_model(
            info.architecture,
            len(info.classes),
            info.input_shape,
            derive_seed(seed, "unrelated", i),
        )
        path = folder / f"{i}.safetensors"
        members.append(save_member(path, network.state_dict(), info))
    return Ensemble(tuple(members), like.average)


def _divergences(targets: Sequence[Tensor], students: Sequence[Evaluation]) -> Pairs:
    rows = [[kl_to(target, s.log_probs) for target in targets] for s in students]
    return torch.tensor(rows, dtype=torch.float64)


def _refuse(ensembles: Sequence[Ensemble], predictor: Predictor) -> None:
    if len(ensembles) < 2:
        raise InputError(
            "conditioning must compare at least 2 ensembles, but got "
            f"{len(ensembles)}; name more members"
        )
    sizes = sorted({len(ensemble) for ensemble in ensembles})
    if len(sizes) > 1:
        raise InputError(
            "ensembles that are compared must have equally many members, but have "
            f"{' and '.join(map(str, sizes))}; leave some out"
        )
    members = [member for ensemble in ensembles for member in ensemble.members]
    known: set[str] = set()
    for member in members:
        if member.sha256 in known:
            raise InputError(
                f"ensembles that are compared must share no member, but {member.path} "
                "is in two; leave it out of one"
            )
        known.add(member.sha256)
    for ensemble in ensembles:
        refuse_unfit(ensemble, predictor)
    Ensemble(tuple(members)).one_architecture(
        "ensembles that are compared must share one architecture"
    )
