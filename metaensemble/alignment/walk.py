"""A walk through a traced graph: where every dimension's entries come from."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_arg

from metaensemble.alignment.aten import aten_name, aten_rule
from metaensemble.alignment.graph import Graph
from metaensemble.alignment.operations import rule_of
from metaensemble.alignment.traced import (
    CLASSES,
    IMAGES,
    POSITIONS,
    Call,
    Layout,
    Trace,
    Traced,
    fixed_like,
    unknown,
)


def walk(network: nn.Module, graph: Graph, images: Tensor) -> Trace:
    """Return what the operations of a network's graph tie together and freeze."""
    walker = _Walk(network, graph)
    if graph.exported:
        for node in graph.module.graph.nodes:
            walker.note(node, node.meta.get("val"))
    else:
        with torch.no_grad():
            walker.run(images)
    return walker.trace


class _Walk(fx.Interpreter):
    """Runs the graph and lays down where every dimension's entries come from."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        super().__init__(graph.module)
        self.sources = graph.sources
        self.trace = Trace(network)
        self.layouts: dict[fx.Node, Layout] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node's value and its layout."""
        value = super().run_node(n)
        self.note(n, value)
        return value

    def note(self, n: fx.Node, value: Any) -> None:
        """Lay down what a node does, its value being known.

        A tensor of the network has no layout before its first use, so that the groups
        come in order of execution.
        """
        if self.sources.get(n.name) is None:
            self.layouts[n] = self._layout(n, value)

    def _layout(self, n: fx.Node, value: Any) -> Layout:
        trace = self.trace
        if n.op == "placeholder":
            if n.name in self.sources:
                return fixed_like(trace, value.shape, "meets a constant")
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
        rule = rule_of(target)
        if isinstance(target, OpOverload):
            rule, target = aten_rule(target), aten_name(target)
        call = Call(name, target, args, kwargs, _shape(value))
        if not call.traced():
            return _constant(trace, call)
        try:
            layout = rule(trace, call)
        except (AttributeError, IndexError, TypeError, ValueError):
            return unknown(trace, call)  # called in a form that the rule does not know
        return layout if _fits(layout, call.shape) else unknown(trace, call)

    def _with_layouts(self, arguments: Any) -> Any:
        """Return arguments with tensors as layouts and other values as they are."""

        def resolve(node: fx.Node) -> Any:
            source = self.sources.get(node.name)
            if source is not None and node not in self.layouts:
                layer = self.trace.first_name(source).rpartition(".")[0] or source
                self.layouts[node] = self.trace.tensor(source, layer)
            layout = self.layouts[node]
            return self.env.get(node) if layout is None else _Opaque(layout)

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
