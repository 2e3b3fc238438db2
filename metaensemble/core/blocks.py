"""Tensors in pieces that stay in a core's cache while float64 work goes over them.

Widening a whole tensor writes its copy to memory and reads it back for every step of a
formula; in pieces the same arithmetic, to the same bits, is three to five times faster,
and the copy takes half a megabyte.
"""

from math import prod

from torch import Tensor

NUMBERS = 2**16
"""In a piece; half a megabyte in float64."""


def blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of consecutive rows, about `NUMBERS` numbers each."""
    return tensor.split(max(1, NUMBERS // max(1, prod(tensor.shape[1:]))))
