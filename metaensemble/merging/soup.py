"""The uniform soup: the mean of the members' weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from metaensemble.core.states import State, refuse_different
from metaensemble.merging.contract import Merged, Merger
from metaensemble.metrics import Measured
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

    def merge(self, members: Ensemble, measure: Callable[[Merged], Measured]) -> Merged:
        """Return the uniform soup."""
        members.one_architecture("a soup's members must share one architecture")
        return Merged(uniform_soup(m.state() for m in members.members), members.info)


def uniform_soup(states: Iterable[Mapping[str, Tensor]]) -> State:
    """Return the mean of state dicts, tensor by tensor.

    One state at a time is held beside the sum, which is float64, so that k copies of a
    network give that network. Integer buffers are those of the first.

    Raises:
        InputError: names or shapes differ.
    """
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    count = 0
    for state in states:
        if not first:
            first = dict(state)
            total = {n: t.double() for n, t in state.items() if t.is_floating_point()}
        else:
            named = {"the first member": first, f"member {count + 1}": state}
            refuse_different(named, "a soup's members must share one architecture")
            for name in total:
                total[name] = total[name] + state[name]
        count += 1
    return {
        name: (total[name] / count).to(like.dtype) if name in total else like.clone()
        for name, like in first.items()
    }
