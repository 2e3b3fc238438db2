"""Before the work: which members the ensemble has, and how much each weighs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metaensemble.core.errors import InputError
from metaensemble.metrics import nll
from metaensemble.teachers import (
    Ensemble,
    OutputCache,
    greedy_selection,
    simplex_weights,
)
from metaensemble.workflows.barrier import names_of
from metaensemble.workflows.options import Session

Select = Literal["none", "greedy"]
"""Whether members are selected on validation before the work."""
Weights = str | Sequence[float]
"""equal, validation, or numbers; as text they are parted by commas."""


@dataclass(frozen=True)
class Weighed:
    """The ensemble to work with."""

    ensemble: Ensemble
    notes: tuple[str, ...] = ()
    """What the report says of it."""
    teacher_images: int = 0
    """Forward passes of members that left it."""


def weighed(
    session: Session, ensemble: Ensemble, select: Select, weights: Weights
) -> Weighed:
    """Return the ensemble whose members were selected and weighed.

    Members of weight 0 leave it, so that they do not run on training images.

    Args:
        session: its validation split decides, where anything is to be decided.
        ensemble: all members.
        select: greedy takes members with replacement; how often is their weight.
        weights: equal (or as selected), validation (those of the smallest NLL), or
            numbers, one per member.

    Raises:
        InputError: the weights are none of these.
    """
    given = parse_weights(weights, len(ensemble))
    if select == "greedy" and given is not None:
        raise InputError(
            "--teacher-weights must be equal or validation with --select greedy, which "
            f"weighs the members itself, but is {_text(weights)}; leave one out"
        )
    names = names_of(ensemble)
    if given is not None:
        chosen = ensemble.weighted(given)
        return Weighed(chosen, (_shares_note(chosen, "as given"),))
    if select == "none" and weights == "equal":
        return Weighed(ensemble)
    split, labels = session.data.validation, session.data.validation.labels
    cache = OutputCache(session.cache.folder, session.cache.device)
    logits = cache.ensemble_logits(ensemble, split)
    chosen, kept, notes = ensemble, list(range(len(ensemble))), []
    if select == "greedy":
        selection = greedy_selection(logits, labels, ensemble.average)
        chosen = ensemble.weighted(selection.weights)
        kept = [i for i, count in enumerate(selection.counts) if count]
        taken = ", ".join(f"{selection.counts[i]} x {names[i]}" for i in kept)
        notes.append(
            f"greedy selection took {len(kept)} of {len(ensemble)} members: {taken}"
        )
    if weights == "validation":
        found = simplex_weights(logits[kept], labels, ensemble.average)
        chosen = chosen.weighted(found)
        kept = [i for i, weight in zip(kept, found, strict=True) if weight]
        notes.append(_shares_note(chosen, "fitted on validation"))
    before = nll(ensemble.log_probs(logits), labels)
    after = nll(chosen.log_probs(logits[kept]), labels)
    notes.append(
        f"validation NLL of the ensemble: {after:.4f} as weighed, {before:.4f} with "
        f"all {len(ensemble)} members alike"
    )
    session.log.event("weighed", names=names, kept=kept, shares=chosen.shares)
    left = (len(ensemble) - len(kept)) * len(split)
    return Weighed(chosen, tuple(notes), left)


def parse_weights(weights: Weights, members: int) -> tuple[float, ...] | None:
    """Return the numbers that `weights` gives; None for equal and validation.

    Raises:
        InputError: it is none of the three, or not one usable number per member.
    """
    if weights in ("equal", "validation"):
        return None
    parts = weights.split(",") if isinstance(weights, str) else weights
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError as error:
        raise InputError(
            "--teacher-weights must be equal, validation, or one number per member "
            f"such as 0.5,0.3,0.2, but is {_text(weights)}; choose one of them"
        ) from error
    if len(numbers) != members:
        raise InputError(
            f"--teacher-weights must be one number per member, but are {len(numbers)} "
            f"for {members} members; give as many, in the members' order"
        )
    usable = all(math.isfinite(n) and n >= 0 for n in numbers)
    if not usable or not sum(numbers):
        raise InputError(
            "--teacher-weights must be finite, not negative and not all 0, but are "
            f"{_text(weights)}; mend them"
        )
    return numbers


def refuse_too_few(ensemble: Ensemble, name: str, fewest: int) -> None:
    """Refuse fewer members than a method needs.

    Raises:
        InputError: they are too few.
    """
    if len(ensemble) < fewest:
        raise InputError(
            f"{name} must have at least {fewest} members, but got {len(ensemble)}; "
            "name more, or choose --method kd for a single teacher"
        )


def _shares_note(ensemble: Ensemble, how: str) -> str:
    named = zip(ensemble.shares, names_of(ensemble), strict=True)
    listing = ", ".join(f"{share:.3f} {name}" for share, name in named)
    return f"weights of the teachers' outputs, {how}: {listing}"


def _text(weights: Weights) -> str:
    if isinstance(weights, str):
        return repr(weights)
    return ",".join(f"{weight:g}" for weight in weights)
