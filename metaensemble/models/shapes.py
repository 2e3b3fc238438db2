"""Types and conditions that the networks' builders share."""

from typing import Annotated

from pydantic import Field

from metaensemble.core.errors import InputError

InputShape = tuple[int, int, int]
"""Channels, height, width."""

Size = Annotated[int, Field(gt=0, le=65_536)]
"""A field that counts channels, units or pixels; bounded, so that a slip of the
keyboard is an error of the user and none of the allocator."""

Depth = Annotated[int, Field(gt=0, le=1_024)]
"""A field that counts layers."""

Dropout = Annotated[float, Field(ge=0, lt=1)]
"""A field that is the probability of dropping an activation."""

SMALL = 64
"""Below this many pixels on the shorter side, ``auto`` stems and heads are small."""


def is_small(input_shape: InputShape) -> bool:
    """Return whether the shorter side of the image is below `SMALL` pixels."""
    return min(input_shape[1:]) < SMALL


def require_size(name: str, input_shape: InputShape, least: int, hint: str) -> None:
    """Refuse images whose shorter side is below `least` pixels.

    Args:
        name: the network, for the message.
        input_shape: channels, height, width.
        least: normally the network's total stride, so that a pixel is left at its end.
        hint: what to do instead; closes the message.

    Raises:
        InputError: the image is smaller.
    """
    _, height, width = input_shape
    if min(height, width) < least:
        raise InputError(
            f"{name} needs images of at least {least}x{least} pixels, "
            f"but these are {height}x{width}; {hint}"
        )
