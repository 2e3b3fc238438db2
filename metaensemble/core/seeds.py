"""Randomness as a function of names and numbers, never of a live generator's past."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order.

    Example: ``derive_seed(seed, "augment", view)``.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed` of the parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def permutation(count: int, *parts: int | str) -> Tensor:
    """Return a permutation of ``range(count)``, int64 (count,), fixed by the parts."""
    return torch.randperm(count, generator=generator(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Run the block under torch's global generators seeded by the parts, then restore.

    For code that draws from the global generator: layer initialisation and dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(*parts))
        yield
