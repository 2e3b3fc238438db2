"""The uniform soup: the mean of the members' weights."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.states import State, refuse_different
from metaensemble.merging.contract import Bench, Merged, Merger
from metaensemble.teachers import Ensemble


class Soup(Merger):
    """Average the weights; batch-norm statistics are re-estimated afterwards.

    For members fine-tuned from one start. The mean of independently trained networks
    computes nothing sensible: their hidden units are permuted against each other.
    """

    summary: ClassVar[str] = "average the weights of members of one start"
    paper: ClassVar[str] = "Wortsman et al. 2022, Model soups (2203.05482)"
    needs: ClassVar[tuple[str, ...]] = ("one architecture", "one start")

    name: Literal["soup"] = "soup"
    """The method's name."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the uniform soup."""
        states = members.lazy_states("a soup's members must share one architecture")
        return Merged(uniform_soup(states), members.info)


def uniform_soup(states: Sequence[Mapping[str, Tensor]]) -> State:
    """Return the mean of state dicts, tensor by tensor; see `weighted_soup`."""
    return weighted_soup(states, [1.0] * len(states))


def weighted_soup(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> State:
    """Return the weighted mean of state dicts, tensor by tensor.

    Of lazy states, one tensor is held beside its sum, which is float64, so that k
    copies of a network give that network. Integer buffers are those of the first.

    Args:
        states: at least one; all with the same names and shapes.
        weights: one per state, summing to more than 0; only their ratios count.

    Raises:
        InputError: names or shapes differ, or there is no state.
    """
    if not states:
        raise InputError("a soup needs at least one network, but got none; name some")
    first, *rest = states
    for number, state in enumerate(rest, 2):
        named = {"the first member": first, f"member {number}": state}
        refuse_different(named, "a soup's members must share one architecture")
    soup: State = {}
    for name, like in first.items():
        if not like.is_floating_point():
            soup[name] = like.clone()
            continue
        total = like.double() * weights[0]
        for state, weight in zip(rest, weights[1:], strict=True):
            total += state[name].double() * weight
        soup[name] = (total / sum(weights)).to(like.dtype)
    return soup
