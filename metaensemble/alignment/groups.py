"""What may be permuted in a network, and which tensors have to follow."""

from collections.abc import Iterable
from itertools import pairwise

from pydantic import Field, model_validator

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError


class Axis(Config):
    """A stretch of one dimension of a tensor that follows a group's permutation."""

    tensor: str
    """Name in the state dict: of a parameter or of a buffer."""
    dim: int = Field(ge=0)
    """The dimension."""
    offset: int = Field(default=0, ge=0)
    """Where the stretch begins, beyond 0 after a concatenation."""
    span: int = Field(default=1, ge=1)
    """Consecutive entries per channel, such as height times width after a flatten."""
    first: int = Field(default=0, ge=0)
    """The group's channel with which the stretch begins."""
    count: int = Field(ge=1)
    """Number of the group's channels in the stretch."""
    statistic: bool = False
    """Whether it is a buffer: it moves along, but has no say in a matching."""


class Group(Config):
    """Channels that may change places, in all their tensors at once.

    With several heads, a permutation must keep the channels of a head together, and
    with several parts it must move the heads of all parts alike: the channels are
    numbered by part, then by head. A layer of attention has two parts: the channels
    that queries share with keys, and those that values share with the output.
    """

    name: str
    """The layer that makes the channels."""
    size: int = Field(ge=2)
    """Number of channels, over all parts."""
    axes: tuple[Axis, ...]
    """Everything that must follow."""
    heads: int = Field(default=1, ge=1)
    """Blocks that move as wholes and may be permuted inside; 1: there are none."""
    parts: int = Field(default=1, ge=1)
    """Equal stretches of channels, none of which may leave its own."""

    @model_validator(mode="after")
    def _consistent(self) -> "Group":
        if self.size % (self.heads * self.parts):
            raise InputError(
                f"a group's size must be a multiple of heads times parts, but "
                f"{self.name!r} has {self.size} channels in {self.parts} x {self.heads}"
            )
        for axis in self.axes:
            if axis.first + axis.count > self.size:
                raise InputError(
                    f"an axis must lie inside its group's {self.size} channels, but "
                    f"{axis.tensor!r} in {self.name!r} covers channels {axis.first} to "
                    f"{axis.first + axis.count - 1}"
                )
        return self


class PermutationSpec(Config):
    """The permutation symmetries of a network, and what was left out of them."""

    groups: tuple[Group, ...]
    """In order of execution; no two of them share an entry of a tensor's dimension."""
    frozen: tuple[tuple[str, str], ...] = ()
    """What keeps its order, and why: (tensor and dimension, or layer; reason)."""

    @model_validator(mode="after")
    def _apart(self) -> "PermutationSpec":
        names: set[str] = set()
        taken: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
        for group in self.groups:
            if group.name in names:
                raise InputError(
                    f"groups must have names of their own, but two are {group.name!r}"
                )
            names.add(group.name)
            for axis in group.axes:
                stop = axis.offset + axis.count * axis.span
                stretch = (axis.offset, stop, group.name)
                taken.setdefault((axis.tensor, axis.dim), []).append(stretch)
        for (tensor, dim), stretches in taken.items():
            for before, after in pairwise(sorted(stretches)):
                if after[0] < before[1]:
                    raise InputError(
                        "an entry must be in one group only, once, but entry "
                        f"{after[0]} of {tensor!r} dim {dim} is in {before[2]!r} and "
                        f"{after[2]!r}"
                    )
        return self

    def group(self, name: str) -> Group:
        """Return the group of that name."""
        return next(group for group in self.groups if group.name == name)

    def without(self, names: Iterable[str], why: str) -> "PermutationSpec":
        """Return the spec with some groups frozen, and named as such."""
        names = set(names)
        return PermutationSpec(
            groups=tuple(g for g in self.groups if g.name not in names),
            frozen=(
                *self.frozen,
                *((g.name, why) for g in self.groups if g.name in names),
            ),
        )
