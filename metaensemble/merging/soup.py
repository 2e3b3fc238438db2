"""The uniform soup: the mean of the members' weights."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metaensemble.core.blocks import blocks
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
    Parameters of one tensor are added up in blocks, which is several times faster.

    Args:
        states: at least one; all with the same names and shapes.
        weights: one per state, summing to more than 0; only their ratios count.

    Raises:
        InputError: names or shapes differ, or there is no state.
    """
    if not states:
        raise InputError("a soup needs at least one network, but got none; name some")
    first, *rest = states
    named = {f"member {number}": state for number, state in enumerate(rest, 2)}
    named = {"the first member": first, **named}
    refuse_different(named, "a soup's members must share one architecture")
    soup: State = {}
    for name, like in first.items():
        if not like.is_floating_point():
            soup[name] = like.clone()
            continue
        others = (state[name] for state in rest)
        soup[name] = _mean(chain((like,), others), weights)
    return soup


def _mean(tensors: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of tensors, of which one is held at a time."""
    first = next(tensors)
    total = torch.empty(first.numel(), dtype=torch.float64, device=first.device)
    for own, more in zip(blocks(total), blocks(first.reshape(-1)), strict=True):
        own.copy_(more).mul_(weights[0])
    for tensor, weight in zip(tensors, weights[1:], strict=True):
        for own, more in zip(blocks(total), blocks(tensor.reshape(-1)), strict=True):
            own += more.double() * weight
    mean = torch.empty(first.numel(), dtype=first.dtype, device=first.device)
    for own, whole in zip(blocks(mean), blocks(total), strict=True):
        own.copy_(whole / sum(weights))
    return mean.view(first.shape)
