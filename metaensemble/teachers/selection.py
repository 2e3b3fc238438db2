"""Which members an ensemble should have, and how much each should weigh.

Both are judged by the negative log-likelihood (NLL) of the ensemble's predictions on
held-out images. Pure functions of the members' logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.teachers.ensemble import Average, ensemble_log_probs

STEPS = 30
"""Steps of the greedy selection; weights are multiples of 1/30 at the finest."""
ROUNDING = 1e-9
"""By so much, relatively, an NLL may differ from an equal one."""
NEGLIGIBLE = 1e-3
"""Smaller weights on the simplex count as 0, so that the member need not run."""


@dataclass(frozen=True)
class Selection:
    """How often greedy selection took each member."""

    counts: tuple[int, ...]
    """Per member; their sum is the number of steps whose prefix was best."""
    nll: float
    """Of the selected ensemble, in nats per image."""
    path: tuple[float, ...]
    """NLL after each step."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the members' weights, which add up to 1."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)


def ensemble_nll(
    logits: Float[Tensor, "members images classes"],
    labels: Int[Tensor, " images"],
    average: Average = "probabilities",
    weights: Sequence[float] | None = None,
) -> float:
    """Return the NLL of the ensemble, in nats per image."""
    log_probs = ensemble_log_probs(logits, average, weights=weights)
    return -float(log_probs.double().gather(1, labels[:, None]).mean())


def greedy_selection(
    logits: Float[Tensor, "members images classes"],
    labels: Int[Tensor, " images"],
    average: Average = "probabilities",
    steps: int = STEPS,
) -> Selection:
    """Return the members that ensemble selection takes, with replacement.

    Starts from the best member, adds in each step the one whose inclusion lowers the
    NLL of the averaged predictions most (or raises it least), and keeps the best prefix
    (Caruana et al. 2004, section 2.1 and 2.2). So the NLL is at most that of the best
    member. Among equals the first member wins.

    Args:
        logits: of the members, on held-out images.
        labels: of the images.
        average: what the ensemble averages.
        steps: how many members to take, the first included.

    Raises:
        InputError: there is no image or no step.
    """
    _refuse_empty(logits)
    if steps < 1:
        raise InputError(f"a selection must have at least 1 step, but has {steps}")
    library = _Library(logits, labels, average)
    order: list[int] = []
    path: list[float] = []
    for _ in range(steps):
        values = [library.nll_with(i) for i in range(len(logits))]
        taken = min(range(len(values)), key=values.__getitem__)
        library.take(taken)
        order.append(taken)
        path.append(values[taken])
    # rounding alone does not make a longer prefix better
    good = min(path) + ROUNDING * max(1.0, min(path))
    best = next(i for i, value in enumerate(path) if value <= good)
    kept = order[: best + 1]
    counts = tuple(kept.count(i) for i in range(len(logits)))
    return Selection(counts, path[best], tuple(path))


class _Library:
    """The running sum of what was taken, and the loss with one more."""

    def __init__(self, logits: Tensor, labels: Tensor, average: Average) -> None:
        self.average = average
        self.labels = labels[:, None]
        self.taken = 0
        if average == "probabilities":  # only those of the labels count
            chosen = logits.float().log_softmax(-1).gather(2, self._index(len(logits)))
            self.values = chosen.double()
            self.total = torch.full_like(self.values[0], -math.inf)
        else:
            self.values = logits
            self.total = torch.zeros_like(logits[0], dtype=torch.float64)

    def nll_with(self, member: int) -> float:
        total = self._sum(member)
        count = self.taken + 1
        if self.average == "probabilities":
            return -float((total - math.log(count)).mean())
        log_probs = (total / count).log_softmax(-1)
        return -float(log_probs.gather(1, self.labels).mean())

    def take(self, member: int) -> None:
        self.total = self._sum(member)
        self.taken += 1

    def _sum(self, member: int) -> Tensor:
        value = self.values[member].double()
        if self.average == "probabilities":
            return torch.logaddexp(self.total, value)
        return self.total + value

    def _index(self, members: int) -> Tensor:
        return self.labels.expand(members, -1, -1)


def simplex_weights(
    logits: Float[Tensor, "members images classes"],
    labels: Int[Tensor, " images"],
    average: Average = "probabilities",
) -> tuple[float, ...]:
    """Return the weights, not negative and adding up to 1, of the smallest NLL.

    The NLL is convex in the weights, for either average. They are the softmax of
    scores, found by L-BFGS from equal ones, deterministically; those below `NEGLIGIBLE`
    become 0. Never worse than equal weights on these images; on others they may be.

    Args:
        logits: of the members, on held-out images.
        labels: of the images.
        average: what the ensemble averages.

    Raises:
        InputError: there is no image.
    """
    _refuse_empty(logits)
    count = len(logits)
    equal = (1 / count,) * count
    if count == 1:
        return equal
    if average == "probabilities":
        index = labels[:, None].expand(count, -1, -1)
        own = logits.float().log_softmax(-1).gather(2, index)[..., 0].double()
    else:
        own = logits.double()
    scores = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        if average == "probabilities":
            return -(own + scores.log_softmax(0)[:, None]).logsumexp(0).mean()
        together = torch.einsum("m,mic->ic", scores.softmax(0), own).log_softmax(-1)
        return -together.gather(1, labels[:, None]).mean()

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimizer.step(closure)
    found = scores.detach().softmax(0)
    found[found < NEGLIGIBLE] = 0
    found /= found.sum()
    weights = tuple(found.tolist())
    own_nll = ensemble_nll(logits, labels, average, weights)
    return weights if own_nll < ensemble_nll(logits, labels, average) else equal


def _refuse_empty(logits: Tensor) -> None:
    if not logits.shape[0] or not logits.shape[1]:
        raise InputError(
            "members must be selected or weighed on at least one of them and one "
            f"image, but there are {logits.shape[0]} and {logits.shape[1]}; "
            "raise --validation-fraction"
        )
