"""Rules for operations that move entries and compute nothing."""

import math

import torch

from metaensemble.alignment.spaces import Dim
from metaensemble.alignment.traced import (
    POSITIONS,
    Call,
    Layout,
    Trace,
    Traced,
    unknown,
)


def reshape(trace: Trace, call: Call) -> Layout:
    """Follow the entries through a reshape: stretches of equal size at a time."""
    x = call.args[0]
    old, new = list(x.shape), list(call.shape)
    dims: list[Dim] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, start = i, j
        taken = made = 1
        while taken != made or first == i or start == j:
            if i < len(old) and (taken <= made or j == len(new)):
                taken *= old[i]
                i += 1
            elif j < len(new):
                made *= new[j]
                j += 1
            else:
                break
        # Ones at the end have nothing on the other side.
        whole = _merge(trace, x.dims[first:i], old[first:i])
        dims += _spread(trace, call, whole, new[start:j])
    return Traced(tuple(call.shape), tuple(dims))


def _merge(trace: Trace, dims: tuple[Dim, ...], sizes: list[int]) -> Dim:
    """Return the dimension that flattening some into one gives."""
    spaces = trace.spaces
    kept = [d for d, size in zip(dims, sizes, strict=True) if size > 1]
    if not kept:
        return trace.fixed(1)
    whole = kept[0]
    for dim in kept[1:]:
        if spaces.frozen(dim):
            whole = spaces.inner(whole, spaces.length(dim))
            continue
        if not spaces.frozen(whole):
            spaces.freeze(whole, "it was flattened together with other channels")
        whole = spaces.resolve(dim) * spaces.length(whole)
    return whole


def _spread(trace: Trace, call: Call, whole: Dim, sizes: list[int]) -> list[Dim]:
    """Return the dimensions into which one is unflattened."""
    spaces = trace.spaces
    dims: list[Dim] = []
    for place, size in enumerate(sizes):
        rest = math.prod(sizes[place + 1 :])
        if size == 1:
            dims.append(trace.fixed(1))
        elif rest == 1:
            dims.append(whole)
        elif why := spaces.frozen(whole):
            dims.append(trace.fixed(size, why))
            whole = trace.fixed(rest, why)
        elif period := _period(trace, whole, size):
            dims.append(trace.fixed(size))
            whole = period
        elif size == 3 and _packed(trace, whole, sizes[place:]):
            parts = [spaces.part(whole, i * rest, (i + 1) * rest) for i in range(3)]
            for part in parts[1:]:
                spaces.tie(parts[0], part)
            dims.append(trace.fixed(size))
            whole = parts[0]
        else:
            before = spaces.resolve(whole)
            dims.append(spaces.outer(whole, rest))
            if any(p.span < rest and not spaces.why[p.space] for p in before):
                trace.notes[call.name] = (
                    f"channels inside the {size} blocks of {rest} that this makes keep "
                    "their order; the blocks move as wholes"
                )
            whole = trace.fixed(rest, f"keeps its order inside blocks ({call.name})")
    return dims


def _packed(trace: Trace, whole: Dim, sizes: list[int]) -> bool:
    """Return whether three stretches look like queries, keys, values in one layer.

    They then keep their order, and their channels are permuted alike.
    """
    free = all(piece.span == 1 for piece in trace.spaces.resolve(whole))
    return free or len(sizes) > 2


def _period(trace: Trace, whole: Dim, times: int) -> Dim | None:
    """Return the chain of which the dimension is so many repetitions, if it is."""
    pieces = trace.spaces.resolve(whole)
    if times < 2 or len(pieces) % times:
        return None
    period = pieces[: len(pieces) // times]
    return period if period * times == pieces else None


def move(trace: Trace, call: Call) -> Layout:
    """Reorder the dimensions."""
    x = call.args[0]
    probe = torch.empty(*range(2, 2 + len(x.shape)), device="meta")
    name = call.target if isinstance(call.target, str) else call.target.__name__
    moved = getattr(torch.Tensor, name)(probe, *call.args[1:], **call.kwargs)
    return Traced(tuple(call.shape), tuple(x.dims[size - 2] for size in moved.shape))


def expand(trace: Trace, call: Call) -> Layout:
    """Repeat what is equal along a dimension; any order of it is right."""
    x = call.args[0]
    missing = len(call.shape) - len(x.shape)
    dims = [
        x.dims[i - missing]
        if i >= missing and x.shape[i - missing] == size
        else trace.equal(size)
        for i, size in enumerate(call.shape)
    ]
    return Traced(tuple(call.shape), tuple(dims))


def repeat(trace: Trace, call: Call) -> Layout:
    """Chain copies of a dimension."""
    x, *times = call.args
    times = times[0] if isinstance(times[0], tuple) else tuple(times)
    new = len(times) - len(x.shape)
    dims: list[Dim] = [trace.equal(size) for size in call.shape[:new]]
    for size, dim, count in zip(x.shape, x.dims, times[new:], strict=True):
        copies = trace.spaces.resolve(dim) * count
        dims.append(trace.equal(count) if size == 1 else copies)
    return Traced(tuple(call.shape), tuple(dims))


def concatenate(trace: Trace, call: Call) -> Layout:
    """Chain the pieces along one dimension and tie the others."""
    parts = list(call.argument(0, "tensors"))
    at = call.argument(1, "dim", 0) % len(call.shape)
    dims = list(parts[0].dims)
    for part in parts[1:]:
        for place, dim in enumerate(part.dims):
            if place != at:
                trace.spaces.tie(dims[place], dim)
    dims[at] = tuple(piece for part in parts for piece in part.dims[at])
    return Traced(tuple(call.shape), tuple(dims))


def chunk(trace: Trace, call: Call) -> Layout:
    """Cut a dimension into stretches."""
    x = call.args[0]
    at = call.argument(2, "dim", 0) % len(x.shape)
    parts, start = [], 0
    for shape in call.shape:
        dims = list(x.dims)
        dims[at] = trace.spaces.part(x.dims[at], start, start + shape[at])
        parts.append(Traced(tuple(shape), tuple(dims)))
        start += shape[at]
    return tuple(parts)


def unbind(trace: Trace, call: Call) -> Layout:
    """Pick every entry of a dimension, which so keeps its order."""
    x = call.args[0]
    at = call.argument(1, "dim", 0) % len(x.shape)
    trace.spaces.freeze(x.dims[at], "entries are picked by their number")
    dims = (*x.dims[:at], *x.dims[at + 1 :])
    return tuple(Traced(tuple(shape), dims) for shape in call.shape)


def getitem(trace: Trace, call: Call) -> Layout:
    """Follow integers, slices, None and the ellipsis; also into a tuple."""
    x, index = call.args
    if not isinstance(x, Traced):
        return x[index] if isinstance(x, (tuple, list)) else None
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is ... or isinstance(i, (int, slice)) for i in index):
        return unknown(trace, call)
    used = sum(isinstance(i, (int, slice)) for i in index)
    if ... not in index:
        index = (*index, ...)
    dims: list[Dim] = []
    place = 0
    for i in index:
        if i is None:
            dims.append(trace.fixed(1))
        elif i is ...:
            dims += x.dims[place : place + len(x.shape) - used]
            place += len(x.shape) - used
        else:
            dims += _select(trace, x.dims[place], x.shape[place], i)
            place += 1
    return Traced(tuple(call.shape), tuple(dims))


def _select(trace: Trace, dim: Dim, size: int, index: int | slice) -> list[Dim]:
    if isinstance(index, int):
        trace.spaces.freeze(dim, "one entry is picked by its number")
        return []
    start, stop, step = index.indices(size)
    if (start, stop, step) == (0, size, 1):
        return [dim]
    if step == 1:
        return [trace.spaces.part(dim, start, max(start, stop))]
    trace.spaces.freeze(dim, POSITIONS)
    return [trace.fixed(len(range(start, stop, step)))]


def pad(trace: Trace, call: Call) -> Layout:
    """Follow constant padding: the new channels are all equal, in any order."""
    x, pads = call.args[0], call.argument(1, "pad")
    constant = call.argument(2, "mode", "constant") == "constant"
    dims = list(x.dims)
    for i, (left, right) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        if left == right == 0:
            continue
        place = len(dims) - 1 - i
        if trace.spaces.frozen(dims[place]):
            dims[place] = trace.fixed(call.shape[place])
        elif constant and left >= 0 and right >= 0:
            new = [trace.equal(n) if n else () for n in (left, right)]
            dims[place] = (*new[0], *dims[place], *new[1])
        else:
            trace.spaces.freeze(dims[place], POSITIONS)
            dims[place] = trace.fixed(call.shape[place])
    return Traced(tuple(call.shape), tuple(dims))
