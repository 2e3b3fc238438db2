"""The matching objective as a sum of bilinear terms, one per tied stretch of a tensor.

The objective is the sum over tensors of <A, P(B)> (Ainsworth et al. 2022, Git Re-Basin,
arXiv 2209.04836, equation 2). Seen from one group, with the others fixed, it is linear:
the sum of ``gain[i, p[i]]``, where `gain` adds up one matrix product per axis. A visit
multiplies only what has changed since the last one: late sweeps cost next to nothing.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metaensemble.alignment.apply import place
from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.core.states import State


@dataclass(frozen=True)
class _Term:
    """One axis of a group: that stretch of A and of B, moved to the front."""

    axis: Axis
    mine: Tensor  # (count * span, *rest), of the reference
    theirs: Tensor  # (count * span, *rest), of the other
    others: tuple[tuple[int, str, Axis], ...]
    """Groups that reorder the rest: (dimension, group, its axis)."""


class Terms:
    """Two states, prepared for the gains of every group."""

    def __init__(
        self,
        spec: PermutationSpec,
        reference: Mapping[str, Tensor],
        other: Mapping[str, Tensor],
    ) -> None:
        self.groups = {group.name: group for group in spec.groups}
        self.neighbours: dict[str, set[str]] = {name: set() for name in self.groups}
        """Group -> the groups whose gain depends on it."""
        self.quadratic: set[str] = set()
        """Groups on two dimensions of one tensor: their gain is only a tangent."""
        self._by_tensor: dict[str, list[tuple[str, Axis]]] = {}
        for group in spec.groups:
            for axis in group.axes:
                if not axis.statistic:
                    own = self._by_tensor.setdefault(axis.tensor, [])
                    own.append((group.name, axis))
        self._reference = _finite(reference, self._by_tensor)
        self._other = _finite(other, self._by_tensor)
        self._terms: dict[str, list[_Term]] = {name: [] for name in self.groups}
        self._constant: dict[str, Tensor] = {}
        """Gains by tensors that no other group touches: biases and norms."""
        for group in spec.groups:
            self._prepare(group)
        self._last: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        """Group -> its gain at the last visit, and the permutations at that time."""

    def _prepare(self, group: Group) -> None:
        constant = torch.zeros(group.size, group.size)
        for axis in group.axes:
            if axis.statistic:
                continue
            tensor = axis.tensor
            others = tuple(
                (its.dim + (its.dim < axis.dim), name, its)
                for name, its in self._by_tensor[tensor]
                if its.dim != axis.dim
            )
            mine = _front(self._reference[tensor], axis)
            theirs = _front(self._other[tensor], axis)
            term = _Term(axis, mine, theirs, others)
            if others:
                self._terms[group.name].append(term)
            else:
                _add(constant, term, mine, theirs)
            for _, name, _ in others:
                self.neighbours[name].add(group.name)
                if name == group.name:
                    self.quadratic.add(name)
        self._constant[group.name] = constant

    def forget(self) -> None:
        """Drop the gains of earlier visits, and with them their rounding."""
        self._last.clear()

    def gain(self, name: str, current: Mapping[str, Tensor]) -> Tensor:
        """Return (size, size): what channel i of the reference gains by j of the other.

        Args:
            name: the group.
            current: permutations of all groups.
        """
        gain, before = self._last.get(name, (self._constant[name].clone(), None))
        for term in self._terms[name]:
            index = _indices(term.theirs, term.others, current)
            if before is None:
                _add(gain, term, term.mine, _reorder(term.theirs, index))
                continue
            was = _indices(term.theirs, term.others, before)
            if len(index) == 1:  # multiply only where the order has changed
                ((dim, now),) = index.items()
                changed = (now != was[dim]).nonzero()[:, 0]
                if not len(changed):
                    continue
                mine = term.mine.index_select(dim, changed)
                theirs = term.theirs.index_select(dim, now[changed])
                theirs -= term.theirs.index_select(dim, was[dim][changed])
            else:
                mine = term.mine
                theirs = _reorder(term.theirs, index) - _reorder(term.theirs, was)
            _add(gain, term, mine, theirs)
        self._last[name] = gain, dict(current)
        return gain

    def known_gain(self, name: str, known: Mapping[str, Tensor]) -> Tensor:
        """Return the gain by those tensors only whose other groups are known."""
        gain = self._constant[name].clone()
        for term in self._terms[name]:
            if all(other in known for _, other, _ in term.others):
                index = _indices(term.theirs, term.others, known)
                _add(gain, term, term.mine, _reorder(term.theirs, index))
        return gain

    def evidence(self, name: str, known: Collection[str]) -> int:
        """Return how many numbers per channel lie in tensors whose groups are known."""
        return sum(
            term.mine.numel() // term.axis.count
            for term in self._terms[name]
            if all(other in known for _, other, _ in term.others)
        )

    def objective(
        self, current: Mapping[str, Tensor], tensors: Collection[str] | None = None
    ) -> float:
        """Return the inner product of the reference with the permuted other.

        Over all tensors that a group touches, or some of them.
        """
        total = 0.0
        for name in self._by_tensor if tensors is None else tensors:
            theirs = self._other[name]
            axes = tuple((a.dim, group, a) for group, a in self._by_tensor[name])
            theirs = _reorder(theirs, _indices(theirs, axes, current))
            total += float(torch.dot(self._reference[name].flatten(), theirs.flatten()))
        return total

    def improvement(
        self, name: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor]
    ) -> float:
        """Return the gain of new permutations of one group, in its tensors alone."""
        axes = self.groups[name].axes
        tensors = {axis.tensor for axis in axes if not axis.statistic}
        return self.objective(new, tensors) - self.objective(old, tensors)


def _finite(state: Mapping[str, Tensor], names: Collection[str]) -> State:
    """Return float32 tensors on the CPU; NaN and infinities (dead units) are zero."""
    tensors = {name: state[name].detach().float().cpu() for name in names}
    return {
        name: tensor
        if math.isfinite(float(tensor.sum()))  # a single bad number shows in the sum
        else torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)
        for name, tensor in tensors.items()
    }


def _front(tensor: Tensor, axis: Axis) -> Tensor:
    """Return the axis's entries first, contiguous: (count * span, *rest)."""
    stretch = tensor.narrow(axis.dim, axis.offset, axis.count * axis.span)
    return stretch.movedim(axis.dim, 0).contiguous()


def _add(gain: Tensor, term: _Term, mine: Tensor, theirs: Tensor) -> None:
    """Add to a group's gain the products of its channels in two stretches."""
    axis = term.axis
    own = slice(axis.first, axis.first + axis.count)
    left = mine.reshape(axis.count, -1)
    right = theirs.reshape(axis.count, -1)
    gain[own, own].addmm_(left, right.T)


def _reorder(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    for dim, index in indices.items():
        if bool((index[1:] < index[:-1]).any()):  # else it is the identity
            tensor = tensor.index_select(dim, index)
    return tensor


def _indices(
    tensor: Tensor,
    axes: tuple[tuple[int, str, Axis], ...],
    current: Mapping[str, Tensor],
) -> dict[int, Tensor]:
    """Return, per dimension, the index that applies the current permutations."""
    indices: dict[int, Tensor] = {}
    for dim, name, axis in axes:
        if dim not in indices:
            indices[dim] = torch.arange(tensor.shape[dim])
        place(indices[dim], axis, current[name])
    return indices
