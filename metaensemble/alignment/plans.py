"""Transport plans between the channels of two networks that may differ in number."""

from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from metaensemble.alignment.assignment import best_permutation
from metaensemble.alignment.groups import Group
from metaensemble.core.config import Config
from metaensemble.core.errors import InputError

ITERATIONS = 10_000
"""Of Sinkhorn's algorithm, at most."""
PIVOTS = 10_000_000
"""Of the exact solver, at most; its default of 100,000 ends before the optimum where
groups have some 2,000 channels (benchmarks/rivals)."""


class Solver(Config):
    """How the mass of one network's channels is moved to the other's."""

    kind: Literal["whole", "exact", "sinkhorn"] = "whole"
    """whole: every channel of the wider network goes with a single one of the narrower,
    whose channels get equal shares up to one; exact: the optimal transport of uniform
    masses, which may divide channels; sinkhorn: the same with an entropy."""
    regularization: float = 0.05
    """Weight of sinkhorn's entropy, in units of the mean cost; above 0."""

    def plan(self, cost: Tensor) -> Tensor:
        """Return float64 (theirs, mine): the mass between channels; sums to 1.

        Args:
            cost: (theirs, mine), of moving a unit of mass; not finite: no matter.

        Raises:
            InputError: the solver is not installed.
        """
        table = np.nan_to_num(cost.double().cpu().numpy(), nan=0, posinf=0, neginf=0)
        if self.kind == "whole":
            return torch.from_numpy(_whole(table))
        transport = _transport(self.kind)
        mine, theirs = (np.full(n, 1 / n) for n in reversed(table.shape))
        if self.kind == "exact":
            plan = transport.emd(theirs, mine, table, numItermax=PIVOTS)
            return torch.from_numpy(plan)
        scale = np.abs(table).mean() or 1.0
        plan = transport.sinkhorn(
            theirs,
            mine,
            table / scale,
            self.regularization,
            method="sinkhorn_log",
            numItermax=ITERATIONS,
            warn=False,
        )
        return torch.from_numpy(np.asarray(plan))


def group_plan(solver: Solver, mine: Group, theirs: Group, cost: Tensor) -> Tensor:
    """Return the transport plan of a group, whose heads move as wholes.

    Args:
        solver: for channels, or for heads where there are some.
        mine: the group in the reference.
        theirs: the same group in the other network.
        cost: (theirs, mine), between channels.

    Returns:
        float64 (theirs, mine), summing to 1.

    Raises:
        InputError: heads of unequal size, or the solver is not installed.
    """
    if mine.heads == theirs.heads == 1 and mine.parts == 1:
        return solver.plan(cost)
    inside, other = (g.size // g.parts // g.heads for g in (mine, theirs))
    if inside != other:
        raise InputError(
            "heads can be transported only to heads of their own size, but "
            f"{mine.name!r} has heads of {other} and of {inside} channels; "
            "choose members whose heads are of one size"
        )
    plan = torch.zeros(theirs.size, mine.size, dtype=torch.float64)
    if mine.heads == theirs.heads:
        best = best_permutation(mine, -cost.T)
        plan[best, torch.arange(mine.size)] = 1 / mine.size
        return plan
    # (parts, heads, inside) of theirs, then of mine
    shape = (mine.parts, theirs.heads, inside, mine.parts, mine.heads, inside)
    blocks = cost.reshape(shape)
    pairs = torch.zeros(theirs.heads, mine.heads, dtype=torch.float64)
    inner: dict[tuple[int, int, int], tuple[Any, Any]] = {}
    for h in range(theirs.heads):
        for k in range(mine.heads):
            for part in range(mine.parts):
                block = blocks[part, h, :, part, k].cpu().numpy()
                rows, columns = linear_sum_assignment(np.nan_to_num(block))
                inner[h, k, part] = rows, columns
                pairs[h, k] += float(block[rows, columns].sum())
    shares = solver.plan(pairs) / (mine.parts * inside)
    view = plan.view(shape)
    for (h, k, part), (rows, columns) in inner.items():
        view[part, h, rows, part, k, columns] = shares[h, k]
    return plan


def _whole(cost: np.ndarray) -> np.ndarray:
    """Return the cheapest plan that divides no channel of the wider network.

    An assignment problem: every channel of the narrower one has as many places as it
    must fill, and one more that may stay empty where the widths do not divide.
    """
    theirs, mine = cost.shape
    if theirs < mine:
        return _whole(cost.T).T
    times, rest = divmod(theirs, mine)
    columns = np.tile(np.arange(mine), times + (rest > 0))
    table = cost[:, columns]
    if rest:
        empty = np.zeros((len(columns) - theirs, len(columns)))
        empty[:, : times * mine] = (np.abs(cost).max() + 1) * 2 * theirs
        table = np.concatenate([table, empty])
    _, chosen = linear_sum_assignment(table)
    plan = np.zeros_like(cost)
    plan[np.arange(theirs), columns[chosen[:theirs]]] = 1 / theirs
    return plan


def _transport(kind: str) -> Any:
    try:
        import ot
    except ImportError as error:
        raise InputError(
            f"transport by {kind!r} plans needs POT, but it is not installed; run: "
            "pip install 'metaensemble[ot]', or choose 'whole' plans"
        ) from error
    return ot
