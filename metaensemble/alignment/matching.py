"""Weight matching (Ainsworth et al. 2022, Git Re-Basin, arXiv 2209.04836)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metaensemble.alignment.apply import Permutations, identity, refuse_unfitting
from metaensemble.alignment.assignment import best_permutation
from metaensemble.alignment.groups import PermutationSpec
from metaensemble.alignment.terms import Terms
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation
from metaensemble.core.states import refuse_different

ROUNDING = 1e-6
"""Gains below this fraction of what a group's assignment is worth are rounding."""


@dataclass(frozen=True)
class Matching:
    """Permutations of one network that bring it close to another."""

    permutations: Permutations
    """To be applied to the other network."""
    objective: float
    """Inner product of the reference's weights with the permuted ones."""
    history: tuple[float, ...]
    """The objective at the identity, at the start and after every sweep, as the sum of
    the gains; never falls."""


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    seed: int = 0,
    restarts: int = 1,
    sweeps: int = 100,
) -> Matching:
    """Return permutations of `other` that bring its weights close to the reference's.

    Maximises the sum over tensors of <A, P(B)> by coordinate ascent over groups, each a
    linear assignment problem (arXiv 2209.04836, section 3.2), in a seeded random order,
    until a sweep gains nothing. Statistics (running means) have no say. The first run
    starts from whichever is better, the identity or `_propagated`, the others from
    the identity in other orders; the best is returned.

    Args:
        spec: the permutations of the network of both states.
        reference: stays as it is.
        other: is to be permuted.
        seed: of the orders in which groups are visited.
        restarts: number of runs.
        sweeps: at most so many visits of every group per run.

    Raises:
        InputError: the states differ in names or shapes or are not of the spec's
            network, or `restarts` or `sweeps` is below 1.
    """
    refuse_different(
        {"the reference": reference, "the other": other},
        "networks to be matched must share one architecture",
    )
    refuse_unfitting(spec, reference)
    if restarts < 1 or sweeps < 1:
        raise InputError(
            "a matching needs at least one restart and one sweep, but got "
            f"restarts={restarts} and sweeps={sweeps}; use restarts=1 and sweeps=100"
        )
    terms = Terms(spec, reference, other)
    runs = (_ascend(spec, terms, seed, run, sweeps) for run in range(restarts))
    return max(runs, key=lambda matching: matching.objective)


def _ascend(
    spec: PermutationSpec, terms: Terms, seed: int, run: int, sweeps: int
) -> Matching:
    """Return the local optimum that one run of coordinate ascent reaches."""
    current = identity(spec)
    history = [terms.objective(current)]
    if run == 0:
        guess = _propagated(spec, terms)
        worth = terms.objective(guess)
        if worth > history[0]:
            current = guess
        history.append(max(worth, history[0]))
    terms.forget()
    stale = set(current)
    for sweep in range(sweeps):
        gained = 0.0
        for place in permutation(len(spec.groups), seed, run, sweep).tolist():
            group = spec.groups[place]
            if group.name not in stale:
                continue  # nothing that its gain depends on has changed
            stale.discard(group.name)
            gain = terms.gain(group.name, current)
            better = best_permutation(group, gain)
            candidate = {**current, group.name: better}
            more, rounding = _improvement(gain, better, current[group.name])
            if more > rounding and group.name in terms.quadratic:
                more = terms.improvement(group.name, current, candidate)
            if more <= rounding:
                continue
            current = candidate
            gained += more
            stale |= terms.neighbours[group.name]
        if gained == 0:
            break
        history.append(history[-1] + gained)
    return Matching(current, terms.objective(current), tuple(history))


def _improvement(gain: Tensor, new: Tensor, old: Tensor) -> tuple[float, float]:
    """Return how much better a permutation is, and how much of that is rounding."""
    rows = torch.arange(len(new))
    more = float((gain[rows, new].double() - gain[rows, old].double()).sum())
    return more, ROUNDING * float(gain[rows, new].abs().sum())


def _propagated(spec: PermutationSpec, terms: Terms) -> Permutations:
    """Return permutations found from what is known, images and classes first.

    Coordinate ascent from the identity begins with neighbours that are not matched yet,
    and takes their noise for evidence. Here a group is matched by those of its tensors
    only whose other groups are matched already, the group with most such numbers per
    channel first. This recovers a hidden permutation of generic weights in one pass.
    """
    found: Permutations = {}
    groups = {group.name: group for group in spec.groups}
    while len(found) < len(groups):
        left = [name for name in groups if name not in found]
        name = max(left, key=lambda n: terms.evidence(n, found.keys()))
        gain = terms.known_gain(name, found)
        found[name] = best_permutation(groups[name], gain)
    return found
