"""The mean of members after their hidden units have been brought to one order."""

from typing import ClassVar, Literal

from pydantic import Field

from metaensemble.alignment import (
    apply_permutations,
    derive_permutations,
    match_many,
    prove,
)
from metaensemble.core.states import State
from metaensemble.merging.contract import Bench, Merged, Merger
from metaensemble.merging.soup import uniform_soup
from metaensemble.teachers import Ensemble
from metaensemble.teachers.member import build_from


class AlignedSoup(Merger):
    """Permute every member to the first one's frame, then average.

    For independently trained members of one architecture: a network computes the same
    when its hidden units change places, so that the units of two networks must be
    matched before their weights are averaged. Batch-norm statistics are re-estimated
    afterwards, without which the mean is at chance (arXiv 2211.08403).
    """

    summary: ClassVar[str] = "match the members' hidden units, then average the weights"
    paper: ClassVar[str] = "Ainsworth et al. 2022, Git Re-Basin (arXiv 2209.04836)"
    needs: ClassVar[tuple[str, ...]] = ("one architecture", "torch.fx can trace it")

    name: Literal["aligned_soup"] = "aligned_soup"
    """The method's name."""
    matching_seed: int = Field(default=0, ge=0)
    """Seed of the orders in which networks and groups of units are matched."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the soup of the aligned members.

        Raises:
            InputError: the network cannot be traced, or its permutations are not sound.
        """
        states = members.states("members to be aligned must share one architecture")
        aligned = align(members, states, self.matching_seed)
        return Merged(uniform_soup(aligned), members.info)


def align(members: Ensemble, states: list[State], seed: int) -> list[State]:
    """Return the states with their hidden units in the order of the first one's.

    Each computes what it did before; the permutations are derived from the traced
    network and proved before they are used.

    Args:
        members: tell the architecture.
        states: their tensors.
        seed: of the matching.
    """
    network = build_from(members.info)
    spec = derive_permutations(network, members.info.input_shape)
    prove(network, spec, members.info.input_shape)
    found = match_many(spec, states, seed)
    return [
        apply_permutations(spec, permutations, state)
        for permutations, state in zip(found, states, strict=True)
    ]
