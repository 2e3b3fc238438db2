"""Linear assignment: the permutation of a group with the largest gain."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from metaensemble.alignment.groups import Group


def best_permutation(
    group: Group, gain: Float[Tensor, "size size"]
) -> Int64[Tensor, " size"]:
    """Return the allowed permutation ``p`` with the largest sum of ``gain[i, p[i]]``.

    With heads, exact in two steps: the best inside every pair of heads, over all parts,
    then the best pairs of heads. NaN and infinities (of dead units) count as no gain.
    """
    table = gain.cpu().numpy()
    if not np.isfinite(table.sum()):
        table = np.nan_to_num(table, nan=0.0, posinf=0.0, neginf=0.0)
    if group.heads == 1 and group.parts == 1:
        return torch.from_numpy(_solve(table))
    inside = group.size // group.parts // group.heads
    shape = (group.parts, group.heads, inside)
    blocks = table.reshape(*shape, *shape)
    total = np.zeros((group.heads, group.heads))
    inner = np.zeros((group.heads, group.heads, group.parts, inside), dtype=np.int64)
    for mine in range(group.heads):
        for theirs in range(group.heads):
            for part in range(group.parts):
                block = blocks[part, mine, :, part, theirs]  # (inside, inside)
                inner[mine, theirs, part] = found = _solve(block)
                total[mine, theirs] += block[np.arange(inside), found].sum()
    heads = _solve(total)
    first = (np.arange(group.parts)[:, None] * group.heads + heads) * inside
    chosen = inner[np.arange(group.heads), heads]  # (heads, parts, inside)
    return torch.from_numpy((first[..., None] + chosen.swapaxes(0, 1)).reshape(-1))


def _solve(table: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(table, maximize=True)[1].astype(np.int64)
