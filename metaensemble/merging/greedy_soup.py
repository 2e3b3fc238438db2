"""The greedy soup: members are averaged in as long as the mean does not get worse."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from metaensemble.core.states import State
from metaensemble.merging.contract import Bench, Judged, Merged, Merger
from metaensemble.merging.soup import uniform_soup, weighted_soup
from metaensemble.teachers import Ensemble

Metric = Literal["accuracy", "nll", "kl"]
"""A held-out figure: of the decisions, of the labels' probabilities, or
KL(ensemble || candidate), which needs no labels."""
Merit = tuple[float, ...]
"""A held-out figure, then what breaks ties; the greater, the better."""


class GreedySoup(Merger):
    """Average members, best first, each kept only if validation does not get worse.

    For members fine-tuned from one start, some of which may be bad. Each is tried once.
    The soup's held-out figure is never below that of the best member (batch-norm
    statistics re-estimated, as those of all candidates are). If the mean of all members
    is better still, that is what comes out: best first and each once, the search may
    miss it, and does where the figure is noisy (benchmarks/soups).
    """

    summary: ClassVar[str] = "average the weights of those members that help"
    paper: ClassVar[str] = "Wortsman et al. 2022, Model soups (2203.05482), recipe 1"
    needs: ClassVar[tuple[str, ...]] = (
        "one architecture",
        "one start",
        "validation images",
    )

    name: Literal["greedy_soup"] = "greedy_soup"
    """The method's name."""
    metric: Metric = "kl"
    """What validation measures: kl (the divergence from the ensemble, which needs no
    labels), nll, or accuracy, which is the paper's and needs many images."""
    ties: Literal["nll", "add", "skip"] = "nll"
    """A member that leaves the figure where it is: added if NLL does not rise, always
    added (as the paper says), or left out (as its code does)."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the greedy soup; its notes name the members in it.

        In memory are the soup, a candidate, the network that judges it, and one tensor
        of a member.
        """
        states = members.lazy_states("a soup's members must share one architecture")
        info = members.info

        def judged(state: State) -> Merit:
            return merit(bench.judge(Merged(state, info)), self.metric)

        alone = [judged(dict(state)) for state in states]
        # Stable, so that among equals the first comes first.
        order = sorted(range(len(states)), key=lambda i: alone[i], reverse=True)
        chosen, best = order[:1], alone[order[0]]
        soup = {name: _at_least_float32(t) for name, t in states[order[0]].items()}
        for turn, index in enumerate(order[1:], 2):
            candidate = weighted_soup([soup, states[index]], [float(len(chosen)), 1.0])
            value = judged(candidate)
            kept = self.keeps(value, best)
            if kept:
                soup, best = candidate, value
                chosen.append(index)
            del candidate  # or it would lie in memory beside the next one
            what = "added" if kept else "left out"
            name = members.members[index].name
            bench.say(f"greedy soup, {turn} of {len(order)}: {name} {what}")
        everything = uniform_soup(states)
        value = judged(everything)
        if value[0] > best[0]:
            soup, best, chosen = everything, value, list(range(len(states)))
        names = ", ".join(members.members[index].name for index in chosen)
        note = (
            f"the soup holds {len(chosen)} of {len(members)} members ({names}); "
            f"{self.metric} on validation {abs(best[0]):.4f}, "
            f"of the best alone {abs(alone[order[0]][0]):.4f}"
        )
        return Merged(soup, info, (note,))

    def keeps(self, value: Merit, best: Merit) -> bool:
        """Return whether a candidate of merit `value` replaces the soup of `best`."""
        if value[0] != best[0]:
            return value[0] > best[0]
        return value >= best if self.ties == "nll" else self.ties == "add"


def merit(judged: Judged, metric: Metric) -> Merit:
    """Return the held-out figure of a candidate; accuracy comes with the NLL."""
    if metric == "accuracy":
        return judged.measured.accuracy, -judged.measured.nll
    return (-judged.measured.nll,) if metric == "nll" else (-judged.kl,)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in a precision in which a running mean does not stall."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
