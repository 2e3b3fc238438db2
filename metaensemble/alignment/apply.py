"""Permutations as values: drawn, inverted, composed, applied to a state dict."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.core.states import State

Permutations = dict[str, Tensor]
"""Group -> permutation, int64 (size,): new channel i is old channel ``p[i]``."""


def identity(spec: PermutationSpec) -> Permutations:
    """Return the permutations that change nothing."""
    return {group.name: torch.arange(group.size) for group in spec.groups}


def random_permutations(spec: PermutationSpec, seed: int) -> Permutations:
    """Return a random permutation of every group, never the identity."""
    return {group.name: _draw(group, seed) for group in spec.groups}


def _draw(group: Group, seed: int) -> Tensor:
    random = generator(seed, "permutation", group.name)
    heads = torch.randperm(group.heads, generator=random)
    inside = group.size // group.parts // group.heads
    blocks = [
        (part * group.heads + head) * inside + torch.randperm(inside, generator=random)
        for part in range(group.parts)
        for head in heads.tolist()
    ]
    drawn = torch.cat(blocks)
    if not bool((drawn == torch.arange(group.size)).all()):
        return drawn
    # Turned by one: inside the blocks, or the blocks of one channel themselves.
    turned = drawn.view(group.parts, group.heads, inside)
    return turned.roll(1, dims=2 if inside > 1 else 1).reshape(-1)


def invert(permutations: Mapping[str, Tensor]) -> Permutations:
    """Return the permutations that undo these."""
    return {name: p.argsort() for name, p in permutations.items()}


def compose(first: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> Permutations:
    """Return the permutations that act as `first` and after it `then`.

    A group that one of them lacks is left in place by it.
    """
    out = {name: p.clone() for name, p in first.items()}
    for name, p in then.items():
        out[name] = out[name][p] if name in out else p.clone()
    return out


class PermutedState(Mapping[str, Tensor]):
    """A state dict in a new order of channels: the same function.

    Each tensor is permuted, or copied, when it is asked for: of a lazily read state no
    more than that is in memory. Buffers such as batch norm's running statistics move
    along. Groups without a permutation keep their order.

    Raises:
        InputError: a permutation is of no group of the spec or none of its size, or
            the state lacks a tensor of the spec or has it in another shape.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        permutations: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        refuse_invalid(spec, permutations)
        refuse_unfitting(spec, state)
        self._state = state
        self._axes: dict[str, list[tuple[Axis, Tensor]]] = {}
        for group in spec.groups:
            if group.name in permutations:
                for axis in group.axes:
                    own = self._axes.setdefault(axis.tensor, [])
                    own.append((axis, permutations[group.name]))

    def __getitem__(self, name: str) -> Tensor:
        return _permuted(self._state[name], self._axes.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def apply_permutations(
    spec: PermutationSpec,
    permutations: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> State:
    """Return the whole `PermutedState`; the input stays as it is.

    Raises:
        InputError: see there.
    """
    return dict(PermutedState(spec, permutations, state))


def _permuted(tensor: Tensor, axes: Iterable[tuple[Axis, Tensor]]) -> Tensor:
    """Return a tensor with the axes' entries in a new order, or a copy."""
    indices: dict[int, Tensor] = {}
    for axis, permutation in axes:
        if axis.dim not in indices:
            indices[axis.dim] = torch.arange(tensor.shape[axis.dim])
        place(indices[axis.dim], axis, permutation)
    out = tensor
    for dim, index in indices.items():
        out = out.index_select(dim, index.to(tensor.device))
    return out if indices else tensor.clone()


def place(index: Tensor, axis: Axis, permutation: Tensor) -> None:
    """Write into an index of a whole dimension how an axis's entries are reordered."""
    own = permutation[axis.first : axis.first + axis.count] - axis.first
    entries = axis.offset + own[:, None] * axis.span + torch.arange(axis.span)
    index[axis.offset : axis.offset + axis.count * axis.span] = entries.reshape(-1)


def refuse_invalid(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> None:
    """Raise `InputError` for a permutation that its group does not allow."""
    groups = {group.name: group for group in spec.groups}
    for name, permutation in permutations.items():
        group = groups.get(name)
        if group is None:
            raise InputError(
                f"a permutation must be of a group of the spec, but {name!r} is none; "
                f"the groups are {', '.join(groups) or 'none'}"
            )
        if not _allowed(group, permutation):
            inside = " that keeps its heads together" if group.heads > 1 else ""
            raise InputError(
                f"the group {name!r} needs a permutation of {group.size} channels"
                f"{inside}, int64, but got {_describe(permutation)}; "
                "make it with random_permutations or a matching"
            )


def _allowed(group: Group, permutation: Tensor) -> bool:
    if permutation.shape != (group.size,) or permutation.dtype != torch.int64:
        return False
    if not torch.equal(permutation.sort().values, torch.arange(group.size)):
        return False
    inside = group.size // group.parts // group.heads
    blocks = (permutation // inside).view(group.parts, group.heads, inside)
    heads = blocks[:, :, 0] - group.heads * torch.arange(group.parts)[:, None]
    together = bool((blocks == blocks[:, :, :1]).all())
    return together and bool((heads == heads[:1]).all())


def _describe(permutation: Tensor) -> str:
    shown = permutation.flatten()[:8].tolist()
    return f"{permutation.dtype} {tuple(permutation.shape)} {shown}"


def refuse_unfitting(spec: PermutationSpec, state: Mapping[str, Tensor]) -> None:
    """Raise `InputError` if a state dict is not of the network of the spec."""
    # A state may be read from its file: every tensor once.
    named = {axis.tensor for group in spec.groups for axis in group.axes}
    shapes = {name: tuple(state[name].shape) for name in named if name in state}
    for group in spec.groups:
        for axis in group.axes:
            if axis.tensor not in shapes:
                raise InputError(
                    f"a state must have the tensors of its spec, but lacks "
                    f"{axis.tensor!r}; derive the spec from this state's network"
                )
            shape = shapes[axis.tensor]
            end = axis.offset + axis.count * axis.span
            if axis.dim >= len(shape) or end > shape[axis.dim]:
                raise InputError(
                    f"the group {group.name!r} needs at least {end} entries in "
                    f"dimension {axis.dim} of {axis.tensor!r}, whose shape is {shape}; "
                    "derive the spec from this state's network"
                )
