"""Optimal transport of one network's channels to another's of another width.

Singh and Jaggi 2020, Model Fusion via Optimal Transport, arXiv 1910.05653. Beyond the
paper: biases, norms with their statistics, residual streams, flattening, concatenation,
attention; and channels that are *consumed* are carried by the map that preserves the
function, see `apply_transport`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaensemble.alignment.activations import LAYERS, _outputs, _samples
from metaensemble.alignment.apply import refuse_unfitting
from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.alignment.plans import Solver, group_plan
from metaensemble.core.errors import InputError
from metaensemble.core.states import State

Plans = dict[str, Tensor]
"""Group -> transport plan, float64 (size of theirs, size of mine), summing to 1."""


@dataclass(frozen=True)
class Side:
    """A network, its weights, and the groups of its channels."""

    network: nn.Module
    """Runs the state; stays as it is."""
    spec: PermutationSpec
    state: State


def plans_by_weights(mine: Side, theirs: Side, solver: Solver) -> Plans:
    """Return plans that pair channels whose incoming weights are near.

    Group by group in order of execution: the cost is the Euclidean distance between
    what makes the channels (rows of weights, biases, affine maps of norms), the other's
    inputs being carried to the reference's by the plans found before (arXiv 1910.05653,
    algorithm 1). Weights with inputs that have no plan yet, which residual connections
    cause, have no say.

    Args:
        mine: the reference.
        theirs: is to be transported.
        solver: makes a plan of a cost.

    Raises:
        InputError: the networks differ in more than widths.
    """
    refuse_other_depth(mine, theirs)
    plans: Plans = {}
    for group, other in zip(mine.spec.groups, theirs.spec.groups, strict=True):
        cost = _weight_cost(mine, theirs, group, other, plans)
        plans[group.name] = group_plan(solver, group, other, cost)
    return plans


def plans_by_activations(
    mine: Side,
    theirs: Side,
    solver: Solver,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Plans:
    """Return plans that pair channels which respond alike to the same images.

    The cost is 1 - correlation of the outputs of the layers that make a group's
    channels, every position being a sample, summed over the layers of a residual
    stream. Groups that no convolution or linear layer makes go by weights.

    Args:
        mine: the reference.
        theirs: is to be transported.
        solver: makes a plan of a cost.
        batches: the same images (batch, channels, height, width), normalised for the
            reference and for the other; at least two images.

    Raises:
        InputError: too few images, or the networks differ in more than widths.
    """
    refuse_other_depth(mine, theirs)
    made = _made_by_layers(mine, theirs)
    sums = {layer: _Products() for layer in made}
    with torch.no_grad():
        for images, same in batches:
            first = _outputs(mine.network, _on(mine.state, images), images, made)
            second = _outputs(theirs.network, _on(theirs.state, same), same, made)
            for layer, (_, axis, other) in made.items():
                if layer in first:
                    sums[layer].add(
                        _samples(second[layer], theirs.network, layer, other),
                        _samples(first[layer], mine.network, layer, axis),
                    )
    if made and max(products.count for products in sums.values()) < 2:
        raise InputError(
            "transport by activations needs images, at least two of them, but got "
            "fewer; pass batches of normalised training images"
        )
    plans: Plans = {}
    for group, other in zip(mine.spec.groups, theirs.spec.groups, strict=True):
        own = [
            sums[layer].correlation()
            for layer, (name, _, _) in made.items()
            if name == group.name and sums[layer].count
        ]
        cost = (
            torch.stack([1 - c for c in own]).sum(0)
            if own
            else _weight_cost(mine, theirs, group, other, plans)
        )
        plans[group.name] = group_plan(solver, group, other, cost)
    return plans


def apply_transport(mine: Side, theirs: Side, plans: Mapping[str, Tensor]) -> State:
    """Return the other network in the reference's widths, its channels in its order.

    Where a tensor *makes* channels, channel j is the mean of the others' channels i,
    weighted by ``T[i, j]`` over its column sum (arXiv 1910.05653, equation 9). Where a
    tensor *consumes* channels, column j is the sum of columns i, each weighted by
    ``T[i, j]`` over its *row* sum: what channel i carried is shared among its images.
    So a channel that is copied twice is consumed by halves, and the function stays. For
    equal widths row and column sums are equal, and both are the paper's formula; for
    others, the paper's would count copies twice.

    A plan that is a permutation permutes exactly; batch norm's statistics move along.
    Tensors that no group touches, and integers, are copied.

    Args:
        mine: the reference; tells the widths.
        theirs: is transported.
        plans: one per group.

    Raises:
        InputError: the networks differ in more than widths.
    """
    refuse_other_depth(mine, theirs)
    touched = {axis.tensor for group in theirs.spec.groups for axis in group.axes}
    return {
        name: _carry(name, mine, theirs, plans) if name in touched else tensor.clone()
        for name, tensor in theirs.state.items()
    }


def refuse_other_depth(mine: Side, theirs: Side) -> None:
    """Raise `InputError` unless two networks differ in nothing but widths."""
    for side in (mine, theirs):
        refuse_unfitting(side.spec, side.state)
    problem = _first_difference(mine, theirs)
    if problem:
        raise InputError(
            "networks to be transported must have one depth and the same layers, "
            f"their widths apart, but {problem}; choose --method kd for others"
        )


def _first_difference(mine: Side, theirs: Side) -> str | None:
    for name in (*mine.state, *theirs.state):
        if name not in theirs.state:
            return f"only the reference has {name!r}"
        if name not in mine.state:
            return f"the reference lacks {name!r}"
    names = [group.name for group in mine.spec.groups]
    others = [group.name for group in theirs.spec.groups]
    if names != others:
        odd = next(iter(set(names) ^ set(others)), names[0])
        return f"the channels of {odd!r} can move in one of them only"
    for group, other in zip(mine.spec.groups, theirs.spec.groups, strict=True):
        kinds = [
            [(a.tensor, a.dim, a.span, a.first == 0) for a in g.axes]
            for g in (group, other)
        ]
        if kinds[0] != kinds[1] or group.parts != other.parts:
            return f"the channels of {group.name!r} are used otherwise"
    for name, tensor in mine.state.items():
        fixed = [_fixed_lengths(side, name) for side in (mine, theirs)]
        if fixed[0] != fixed[1]:
            shapes = tuple(tensor.shape), tuple(theirs.state[name].shape)
            return f"{name!r} is of shape {shapes[0]} and {shapes[1]}"
    return None


def _fixed_lengths(side: Side, name: str) -> list[list[int]]:
    """Return, per dimension, the lengths of the stretches around groups' channels."""
    lengths = []
    for dim, size in enumerate(side.state[name].shape):
        at, own = 0, []
        for _, axis in _axes_of(side.spec, name, dim):
            own.append(axis.offset - at)
            at = axis.offset + axis.count * axis.span
        lengths.append([*own, size - at])
    return lengths


def _axes_of(spec: PermutationSpec, name: str, dim: int) -> list[tuple[str, Axis]]:
    """Return the groups on a dimension of a tensor, in the order of their entries."""
    found = [
        (group.name, axis)
        for group in spec.groups
        for axis in group.axes
        if axis.tensor == name and axis.dim == dim
    ]
    return sorted(found, key=lambda item: item[1].offset)


def _consumes(side: Side, name: str, dim: int) -> bool:
    """Return whether a dimension is one of inputs, over which its layer sums."""
    owner, _, attribute = name.rpartition(".")
    module = side.network.get_submodule(owner)
    if side.state[name].ndim < 2 or isinstance(
        module, nn.Embedding | nn.LayerNorm | nn.RMSNorm
    ):
        return False
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return dim == 0
    return dim == 1 and attribute.endswith("weight")


def _carry(
    name: str,
    mine: Side,
    theirs: Side,
    plans: Mapping[str, Tensor],
    but: int | None = None,
) -> Tensor:
    """Return the other's tensor in the reference's widths, one dimension left alone."""
    tensor = theirs.state[name]
    out = tensor.double()
    for dim in range(tensor.ndim):
        axes = _axes_of(mine.spec, name, dim)
        if dim == but or not axes:
            continue
        out = out.movedim(dim, 0)
        parts: list[Tensor] = []
        at = 0
        others = _axes_of(theirs.spec, name, dim)
        for (group, axis), (_, other) in zip(axes, others, strict=True):
            share = _share(plans[group], axis, other, _consumes(theirs, name, dim))
            end = other.offset + other.count * other.span
            own = out[other.offset : end].reshape(other.count, -1)
            carried = share.to(own.device) @ own  # (channels, span * rest)
            parts += [out[at : other.offset], carried.reshape(-1, *out.shape[1:])]
            at = end
        out = torch.cat([*parts, out[at:]]).movedim(0, dim)
    return out.to(tensor.dtype).contiguous()


def _share(plan: Tensor, axis: Axis, other: Axis, consumed: bool) -> Tensor:
    """Return float64 (mine, theirs): what channels of an axis are multiplied by."""
    rows = slice(other.first, other.first + other.count)
    own = plan[rows, axis.first : axis.first + axis.count]
    whole = own.sum(1 if consumed else 0, keepdim=True)
    return torch.where(whole > 0, own / whole, 0.0).T


def _weight_cost(
    mine: Side, theirs: Side, group: Group, other: Group, plans: Mapping[str, Tensor]
) -> Tensor:
    """Return (theirs, mine): distances between what makes the channels."""
    squares = torch.zeros(other.size, group.size, dtype=torch.float64)
    for axis, its in zip(group.axes, other.axes, strict=True):
        name = axis.tensor
        rest = [d for d in range(mine.state[name].ndim) if d != axis.dim]
        known = all(g in plans for d in rest for g, _ in _axes_of(mine.spec, name, d))
        if axis.statistic or not known or _consumes(mine, name, axis.dim):
            continue
        left = _rows(_carry(name, mine, theirs, plans, axis.dim), its)
        right = _rows(mine.state[name], axis)
        own = slice(its.first, its.first + its.count)
        squares[own, axis.first : axis.first + axis.count] += (
            torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        )
    return squares.sqrt()


def _rows(tensor: Tensor, axis: Axis) -> Tensor:
    """Return float64 (channels, numbers) of an axis."""
    stretch = tensor.narrow(axis.dim, axis.offset, axis.count * axis.span)
    return stretch.movedim(axis.dim, 0).reshape(axis.count, -1).double().cpu()


def _on(state: State, images: Tensor) -> State:
    """Return the state on the device of the images."""
    return {name: tensor.to(images.device) for name, tensor in state.items()}


def _made_by_layers(mine: Side, theirs: Side) -> dict[str, tuple[str, Axis, Axis]]:
    """Return the layers that make all channels of a group: the group, its axes."""
    modules = dict(mine.network.named_modules())
    made: dict[str, tuple[str, Axis, Axis]] = {}
    for group, other in zip(mine.spec.groups, theirs.spec.groups, strict=True):
        for axis, its in zip(group.axes, other.axes, strict=True):
            layer, _, attribute = axis.tensor.rpartition(".")
            whole = axis.first == 0 and axis.count == group.size
            if attribute == "weight" and axis.dim == 0 and whole:
                if isinstance(modules.get(layer), LAYERS):
                    made.setdefault(layer, (group.name, axis, its))
    return made


class _Products:
    """Sums over samples of channels in both networks, of squares and of products."""

    def __init__(self) -> None:
        self.count = 0
        self._theirs: Tensor = torch.zeros(())  # (2, channels): sums, squares
        self._mine: Tensor = torch.zeros(())
        self._products: Tensor = torch.zeros(())

    def add(self, theirs: Tensor, mine: Tensor) -> None:
        """Add samples (samples, channels) of both networks."""
        if len(theirs) != len(mine):
            raise InputError(
                "networks to be compared by activations must have as many positions in "
                f"every layer, but one has {len(theirs)} where the other has "
                f"{len(mine)}; match them by weights"
            )
        self.count += len(mine)
        self._theirs = self._theirs + torch.stack(
            [theirs.sum(0), theirs.square().sum(0)]
        )
        self._mine = self._mine + torch.stack([mine.sum(0), mine.square().sum(0)])
        self._products = self._products + theirs.T @ mine

    def correlation(self) -> Tensor:
        """Return (theirs, mine); 0 for constant channels."""
        mean, spread = zip(
            *(self._spread(sums) for sums in (self._theirs, self._mine)), strict=True
        )
        covariance = self._products / self.count - mean[0][:, None] * mean[1]
        scale = spread[0][:, None] * spread[1]
        return torch.where(scale > 0, covariance / scale, 0.0).cpu()

    def _spread(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = sums / self.count
        variance = square - mean.square()
        constant = variance <= 1e-9 * square  # rounding
        return mean, torch.where(constant, 0.0, variance.clamp_min(0).sqrt())
