"""Deriving a network's permutation symmetries from its traced graph."""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.alignment.operations import rule_of
from metaensemble.alignment.traced import (
    CLASSES,
    IMAGES,
    INSIDE_ATTENTION,
    KERNEL,
    POSITIONS,
    Call,
    Layout,
    Trace,
    Traced,
    fixed_like,
    unknown,
)
from metaensemble.core.errors import InputError


def derive_permutations(
    network: nn.Module, input_shape: tuple[int, ...]
) -> PermutationSpec:
    """Return which channels of a network may change places, and what must follow.

    The network's graph (torch.fx) runs once on zero images, in eval mode and without
    gradients; modes, weights and buffers stay as they are. Whatever has no rule is
    frozen to the identity and named. Prove a spec before its first use: `prove`.

    Args:
        network: maps images (batch, *input_shape) to logits.
        input_shape: channels, height and width of one image.

    Raises:
        InputError: the network cannot be traced, because its control flow depends on
            the data; the message says where.
    """
    modes = {module: module.training for module in network.modules()}
    try:
        graph = _trace(network.eval())
        first = next(network.parameters(), torch.empty(0))
        images = torch.zeros(2, *input_shape, device=first.device, dtype=first.dtype)
        walk = _Walk(graph, network)
        with torch.no_grad():
            walk.run(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return PermutationSpec(groups=_groups(walk.trace), frozen=_frozen(walk.trace))


def _trace(network: nn.Module) -> fx.GraphModule:
    before = set(vars(network))
    try:
        return fx.symbolic_trace(network)
    except Exception as error:  # a proxy in a condition raises all sorts of things
        raise InputError(
            "a network's permutations can be derived only if torch.fx can trace it, "
            f"but tracing failed {_where(error)} ({_one_line(error)}); take what "
            "depends on the data out of the control flow, or give a PermutationSpec "
            "by hand"
        ) from error
    finally:
        for constant in set(vars(network)) - before:  # left behind by torch.fx
            delattr(network, constant)


class _Walk(fx.Interpreter):
    """Runs the graph and lays down where every dimension's entries come from."""

    def __init__(self, graph: fx.GraphModule, network: nn.Module) -> None:
        super().__init__(graph)
        self.trace = Trace(network)
        self.layouts: dict[fx.Node, Layout] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node's value and its layout."""
        value = super().run_node(n)
        layout = self._layout(n, value)
        self.layouts[n] = layout
        return value

    def _layout(self, n: fx.Node, value: Any) -> Layout:
        trace = self.trace
        if n.op == "placeholder":
            return _images(trace, value)
        if n.op == "get_attr":
            name = str(n.target)
            if not isinstance(value, Tensor):
                return None
            known = trace.tensor(name, name)
            return known or fixed_like(trace, value.shape, "meets a constant")
        args = self._with_layouts(n.args)
        kwargs = self._with_layouts(n.kwargs)
        if n.op == "output":
            for out in Call("output", None, args, kwargs, None).traced():
                trace.freeze(out, slice(0, 1), POSITIONS)
                trace.freeze(out, slice(1, None), CLASSES)
            return None
        target = n.target
        name = n.name
        if n.op == "call_module":
            name = str(n.target)
            target = trace.network.get_submodule(name)
        if not args and "input" in kwargs:
            args = (kwargs["input"],)
            kwargs = {key: v for key, v in kwargs.items() if key != "input"}
        call = Call(name, target, args, kwargs, _shape(value))
        if not call.traced():
            return _constant(trace, call)
        try:
            layout = rule_of(target)(trace, call)
        except (AttributeError, IndexError, TypeError, ValueError):
            return unknown(trace, call)  # called in a form that the rule does not know
        return layout if _fits(layout, call.shape) else unknown(trace, call)

    def _with_layouts(self, arguments: Any) -> Any:
        """Return arguments with tensors as layouts and other values as they are."""

        def resolve(node: fx.Node) -> Any:
            layout = self.layouts[node]
            return self.env[node] if layout is None else _Opaque(layout)

        return _unwrap(map_arg(arguments, resolve))


class _Opaque:
    """Keeps fx from looking into a layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


def _unwrap(value: Any) -> Any:
    if isinstance(value, _Opaque):
        return value.layout
    if isinstance(value, slice):
        return value
    if isinstance(value, dict):
        return {key: _unwrap(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        return tuple(_unwrap(part) for part in value)
    return value


def _images(trace: Trace, images: Tensor) -> Traced:
    batch, channels, *positions = images.shape
    dims = [trace.fixed(batch), trace.fixed(channels, IMAGES)]
    dims += [trace.fixed(size, IMAGES) for size in positions]
    return Traced(tuple(images.shape), tuple(dims))


def _constant(trace: Trace, call: Call) -> Layout:
    """Return the layout of a value that no traced tensor went into."""
    if isinstance(call.target, nn.Module):
        return unknown(trace, call)
    return fixed_like(trace, call.shape, "meets a constant")


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return tuple(_shape(part) for part in value)
    return None


def _fits(layout: Layout, shape: Any) -> bool:
    if isinstance(shape, torch.Size):
        fits = isinstance(layout, Traced) and layout.shape == tuple(shape)
        return fits and len(layout.dims) == len(shape)
    if isinstance(shape, tuple) and isinstance(layout, tuple):
        return all(map(_fits, layout, shape))
    return (shape is None) == (layout is None)


def _groups(trace: Trace) -> tuple[Group, ...]:
    spaces = trace.spaces
    axes: dict[int, list[Axis]] = {}
    buffers = {name for name, _ in trace.network.named_buffers(remove_duplicate=False)}
    for first, traced in trace.tensors.items():
        for name in trace.names.get(first, ()):
            for place, dim in enumerate(traced.dims):
                at = 0
                for piece in spaces.resolve(dim):
                    size = spaces.size[piece.space]
                    if spaces.why[piece.space] is None and size > 1:
                        axis = Axis(
                            tensor=name,
                            dim=place,
                            offset=at,
                            span=piece.span,
                            count=size,
                            statistic=name in buffers,
                        )
                        axes.setdefault(piece.space, []).append(axis)
                    at += spaces.entries(piece)
    groups = [
        Group(
            name=spaces.name[space],
            size=spaces.size[space],
            axes=tuple(own),
            heads=spaces.heads[space],
        )
        for space, own in axes.items()
    ]
    return _in_order([*groups, *trace.attentions.values()], list(trace.tensors))


def _in_order(groups: list[Group], tensors: list[str]) -> tuple[Group, ...]:
    """Return the groups in order of execution, with names of their own."""
    place = {name: i for i, name in enumerate(tensors)}
    last = len(tensors)
    ordered = sorted(
        groups, key=lambda g: min(place.get(a.tensor, last) for a in g.axes)
    )
    seen: dict[str, int] = {}
    named: list[Group] = []
    for group in ordered:
        number = seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if number == 1 else f"{group.name}#{number}"
        named.append(group.model_copy(update={"name": name}))
    return tuple(named)


def _frozen(trace: Trace) -> tuple[tuple[str, str], ...]:
    frozen = list(trace.notes.items())
    spaces = trace.spaces
    state = trace.network.state_dict(keep_vars=True)
    for first, names in trace.names.items():
        for name in names:
            if first not in trace.tensors:
                if state[name].ndim and state[name].numel() > 1:
                    frozen.append((name, "is not used on the way to the logits"))
                continue
            for place, dim in enumerate(trace.tensors[first].dims):
                pieces = spaces.resolve(dim)
                whys = [spaces.why[p.space] for p in pieces if spaces.entries(p) > 1]
                for why in dict.fromkeys(whys):
                    if why and why not in (INSIDE_ATTENTION, KERNEL):
                        part = "" if all(whys) else "part of "
                        frozen.append((f"{part}{name} dim {place}", why))
    return tuple(frozen)


def _where(error: BaseException) -> str:
    """Return the innermost line of the user's code that an error went through."""
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if not f.filename.startswith(ours) and "<" not in f.filename
    ]
    if not own:
        return "in the network's forward"
    return f"at {own[-1].filename}:{own[-1].lineno}, `{own[-1].line}`"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
