"""Which images make up batch t: a pure function of (seed, step).

So a run can be resumed at any step without the past of a generator.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from metaensemble.core.seeds import permutation
from metaensemble.data.split import Split


@lru_cache(maxsize=4)  # labelled and unlabelled data, each across an epoch's border
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return permutation(count, seed, "epoch", epoch)


def epoch_order(count: int, seed: int, epoch: int) -> Int64[Tensor, " count"]:
    """Return the order in which an epoch visits its `count` images."""
    return _order(count, seed, epoch).clone()


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return how many batches an epoch has; an incomplete last batch is dropped.

    If `count` is below `batch_size`, an epoch is one batch of all images.

    Raises:
        ValueError: `count` or `batch_size` is below 1.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(
            "batches need at least one image and a batch_size of at least 1, but got "
            f"count {count} and batch_size {batch_size}; change them"
        )
    return max(1, count // batch_size)


def epoch_of(count: int, batch_size: int, step: int) -> int:
    """Return the epoch, from 0, in which batch `step` lies."""
    return step // steps_per_epoch(count, batch_size)


def batch_indices(
    count: int, batch_size: int, seed: int, step: int
) -> Int64[Tensor, " batch"]:
    """Return the indices of batch `step`; within an epoch none repeats."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    start = place * batch_size
    return _order(count, seed, epoch)[start : start + batch_size].clone()


def in_order(split: Split, batch_size: int) -> Iterator[Int64[Tensor, " chunk"]]:
    """Yield the indices 0, 1, ... of a split in chunks; the last may be shorter."""
    for start in range(0, len(split), batch_size):
        yield torch.arange(start, min(start + batch_size, len(split)))
