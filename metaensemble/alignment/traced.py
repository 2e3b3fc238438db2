"""What the rules for layers and operations work on while a network is traced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.alignment.groups import Group
from metaensemble.alignment.spaces import Dim, Spaces

IMAGES = "belongs to the images"
CLASSES = "belongs to the classes"
POSITIONS = "positions keep their order"
KERNEL = "is a position in a kernel"
INSIDE_ATTENTION = "is permuted by the attention's own group"


@dataclass(frozen=True)
class Traced:
    """A tensor's shape, and where the entries of its dimensions come from."""

    shape: tuple[int, ...]
    dims: tuple[Dim, ...]


Layout = Any
"""A `Traced`, a tuple or list of layouts, or None for what is not a tensor."""


@dataclass(frozen=True)
class Call:
    """One operation: its arguments, tensors among them as `Traced`, and its result."""

    name: str
    """Of the layer, or of the operation's node in the graph."""
    target: Any
    """The module, the function, or the method's name."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: Any
    """Shape of the result, a tuple of shapes for a tuple; None if it is no tensor."""

    def argument(self, place: int, key: str, default: Any = None) -> Any:
        """Return an argument by its place or else its keyword."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(key, default)

    def traced(self) -> list[Traced]:
        """Return all tensors among the arguments, also those in lists."""
        return _collect([self.args, self.kwargs])


Rule = Callable[["Trace", Call], Layout]
"""Ties and freezes what an operation demands; returns its result's layout."""


@dataclass
class Trace:
    """The state of tracing one network."""

    network: nn.Module
    spaces: Spaces = field(default_factory=Spaces)
    tensors: dict[str, Traced] = field(default_factory=dict)
    """Layouts of parameters and buffers, by the first name of each."""
    attentions: dict[str, Group] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Layer or operation -> what it makes keep its order."""

    def __post_init__(self) -> None:
        self._first: dict[int, str] = {}
        self.names: dict[str, list[str]] = {}
        """First name of a tensor -> all its names, in order of the state dict."""
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            first = self._first.setdefault(id(tensor), name)
            self.names.setdefault(first, []).append(name)

    def tensor(self, name: str, layer: str) -> Traced | None:
        """Return a parameter or buffer by its name, or None if there is none."""
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.network.get_submodule(owner), attribute, None)
        if not isinstance(value, Tensor):
            return None
        first = self._first.get(id(value), name)
        if first not in self.tensors:
            shape = tuple(value.shape)
            dims = tuple(self.spaces.new(size, layer) for size in shape)
            self.tensors[first] = Traced(shape, dims)
            if first not in self.names:
                why = f"meets {name}, which is not in the state dict"
                self.freeze(self.tensors[first], slice(None), why)
        return self.tensors[first]

    def own(self, call: Call, attribute: str) -> Traced | None:
        """Return a tensor of the layer that is called."""
        return self.tensor(f"{call.name}.{attribute}", call.name)

    def first_name(self, name: str) -> str:
        """Return the name under which a tensor's layout is kept."""
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.network.get_submodule(owner), attribute)
        return self._first.get(id(value), name)

    def fixed(self, size: int, why: str = POSITIONS) -> Dim:
        """Return a dimension that keeps its order."""
        return self.spaces.new(size, "", why)

    def equal(self, size: int) -> Dim:
        """Return a dimension whose entries are all equal: any order is right."""
        return self.spaces.new(size, "")

    def freeze(self, traced: Traced, dims: slice, why: str) -> None:
        """Freeze some dimensions of a value."""
        for dim in traced.dims[dims]:
            self.spaces.freeze(dim, why)


def unknown(trace: Trace, call: Call) -> Layout:
    """Freeze everything that an operation without a rule touches."""
    if isinstance(call.target, nn.Module):
        kind = type(call.target).__name__
        for name, _ in [
            *call.target.named_parameters(),
            *call.target.named_buffers(),
        ]:
            tensor = trace.tensor(f"{call.name}.{name}", call.name)
            assert tensor is not None
            trace.freeze(tensor, slice(None), f"{kind} has no rule")
    else:
        kind = getattr(call.target, "__name__", str(call.target))
    for traced in call.traced():
        trace.freeze(traced, slice(None), f"{kind} ({call.name}) has no rule")
    trace.notes[call.name] = f"{kind} has no rule: all that it touches is frozen"
    return fixed_like(trace, call.shape, f"{kind} ({call.name}) has no rule")


def fixed_like(trace: Trace, shape: Any, why: str) -> Layout:
    """Return a frozen layout for a result of that shape."""
    if isinstance(shape, torch.Size):
        return Traced(tuple(shape), tuple(trace.fixed(n, why) for n in shape))
    if isinstance(shape, (tuple, list)):
        return tuple(fixed_like(trace, part, why) for part in shape)
    return None


def _collect(value: Any) -> list[Traced]:
    if isinstance(value, Traced):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [traced for part in value for traced in _collect(part)]
    return []
