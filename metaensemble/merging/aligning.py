"""Bringing the hidden units of members to one order, before they are merged."""

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from metaensemble.alignment import (
    PermutedState,
    identity,
    match_activations,
    match_many,
    spec_for,
)
from metaensemble.merging.contract import Merger
from metaensemble.teachers import Ensemble
from metaensemble.teachers.member import build_from

Matching = Literal["weights", "activations"]
"""By what units are paired: their weights, or their responses to images."""
Batches = Callable[[], Iterable[Tensor]]
"""Gives normalised images, the same at every call."""


class AligningMerger(Merger, ABC):
    """A merger that first aligns its members; the fields that all of them have."""

    matching: Matching = "weights"
    """By what units are paired: their weights, or their responses to images."""
    matching_seed: int = Field(default=0, ge=0)
    """Seed of the orders in which networks and groups of units are matched."""
    permutation_spec: Path | None = None
    """JSON file of what may be permuted, for networks that cannot be traced (see
    docs/alignment.md); default: derived from the network."""

    def aligned(
        self,
        members: Ensemble,
        batches: Batches = tuple,
        why: str = "members to be aligned must share one architecture",
    ) -> list[PermutedState]:
        """Return the members in the first one's frame, by this merger's matching.

        Raises:
            InputError: they differ in architecture (`why` opens the message), the
                network cannot be traced, or its permutations are not sound.
        """
        states = members.lazy_states(why)
        spec = self.permutation_spec
        return align(members, states, self.matching_seed, self.matching, batches, spec)


def align(
    members: Ensemble,
    states: Sequence[Mapping[str, Tensor]],
    seed: int,
    matching: Matching = "weights",
    batches: Batches = tuple,
    spec_file: Path | None = None,
) -> list[PermutedState]:
    """Return the states with their hidden units in the order of the first one's.

    Each computes what it did before; the permutations are proved before they are used.
    Of lazy states, tensors are read when they are asked for.

    Args:
        members: tell the architecture.
        states: their tensors.
        seed: of the matching by weights.
        matching: by weights, all are matched to one another; by activations, each to
            the first.
        batches: gives normalised images, for the matching by activations.
        spec_file: the permutation spec as JSON; None: it is derived.

    Raises:
        InputError: the network cannot be traced, or its permutations are not sound.
    """
    network = build_from(members.info)
    spec = spec_for(network, members.info.input_shape, spec_file)
    if matching == "weights":
        found = match_many(spec, states, seed)
    else:
        first, *others = states
        found = [identity(spec)]
        for state in others:
            images = (batch.cpu() for batch in batches())  # where the states are
            matched = match_activations(spec, network, first, state, images)
            found.append(matched.permutations)
    return [
        PermutedState(spec, permutations, state)
        for permutations, state in zip(found, states, strict=True)
    ]
