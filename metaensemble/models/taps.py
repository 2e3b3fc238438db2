"""Features of any network: where they can be read, and reading them.

A tap names one value of a forward pass: the output of a module in its k-th call, or the
input of a module. `stages` finds one tap per stage of any network, without help from
its author: the last value at each resolution, the token streams between blocks, or the
hidden layers of a multilayer perceptron.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.models.modes import run_on_zeros
from metaensemble.models.shapes import InputShape

MAX_STAGES = 4
"""A network of equal blocks (ViT, MLP) is tapped after so many of them at most."""


@dataclass(frozen=True)
class Tap:
    """One value of a forward pass, and its shape as a map."""

    module: str
    """Dotted name of the module."""
    call: int
    """Which call of the module within one forward pass, from 1."""
    side: Literal["output", "input"]
    """Whether the module's output or its (first) input is read."""
    channels: int
    """Channels of the map."""
    height: int
    """Height of the map; 1 for vectors."""
    width: int
    """Width of the map; 1 for vectors."""

    def __str__(self) -> str:
        """Return the name that a user types: ``layer2``, ``relu#3``, ``<fc``."""
        before = "<" if self.side == "input" else ""
        return f"{before}{self.module}" + (f"#{self.call}" if self.call > 1 else "")


def stages(network: nn.Module, input_shape: InputShape) -> tuple[Tap, ...]:
    """Return one tap per stage of a network, in the order of its forward pass.

    Convolutional networks: the last value at each resolution (height and width above 1)
    before it changes. Networks of tokens: the outputs of up to `MAX_STAGES` of their
    blocks, evenly spaced, the last among them. Others: up to as many inputs of linear
    layers after the first.

    Raises:
        InputError: the network has no inner features (a single linear layer).
    """
    seen = _record(network, input_shape)
    found = _blocks(network, seen) or _resolutions(seen) or _hidden(network, seen)
    if not found:
        raise InputError(
            "a network must have inner features for a method that matches them, but "
            f"this {type(network).__name__} has none; choose --method kd"
        )
    return tuple(found)


def penultimate(network: nn.Module, input_shape: InputShape) -> Tap:
    """Return the tap of what the last linear layer reads: the vector before the logits.

    Raises:
        InputError: the network does not end in a linear layer.
    """
    seen = _record(network, input_shape)
    modules = dict(network.named_modules())
    last = [e for e in seen if e.side == "input" and _is_linear(modules[e.module])]
    if not last:
        raise InputError(
            "a network must end in a linear layer for a method that matches the vector "
            f"before it, but this {type(network).__name__} has none; choose --method kd"
        )
    return last[-1].tap()


def named(
    network: nn.Module, input_shape: InputShape, names: Sequence[str], whose: str
) -> tuple[Tap, ...]:
    """Return the taps that a user named, as `Tap.__str__` spells them.

    Args:
        network: whose values.
        input_shape: channels, height, width.
        names: such as ``layer2`` or ``relu#3``.
        whose: of the network, for the message.

    Raises:
        InputError: there is no such value; those that exist are listed.
    """
    known = {str(e.tap()): e.tap() for e in _record(network, input_shape)}
    for name in names:
        if name not in known:
            outputs = [key for key in known if not key.startswith("<")]
            raise InputError(
                f"a layer to match must be one of {whose}, but there is no {name!r}; "
                f"there are {', '.join(outputs)}"
            )
    return tuple(known[name] for name in names)


def tapped(
    network: nn.Module, taps: Sequence[Tap], inputs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Run a network; return its logits and the tapped values as maps.

    Args:
        network: left as it was; hooks are on during the call only.
        taps: what to read.
        inputs: normalised images (batch, channels, height, width).

    Returns:
        logits (batch, classes) and, per tap, a map (batch, channels, height, width).
    """
    found: dict[Tap, Tensor] = {}
    calls: dict[str, int] = {}
    modules = dict(network.named_modules())
    handles = []
    for name in {tap.module for tap in taps}:

        def before(_: nn.Module, args: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            _keep(found, taps, name, calls[name], "input", args[0] if args else None)

        def after(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            value = out[0] if isinstance(out, tuple) else out
            _keep(found, taps, name, calls[name], "output", value)

        handles.append(modules[name].register_forward_pre_hook(before))
        handles.append(modules[name].register_forward_hook(after))
    try:
        logits = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [found[tap] for tap in taps]


def as_map(value: Tensor) -> Tensor:
    """Return a value as a map (batch, channels, height, width).

    Maps are themselves; vectors become one pixel; tokens (batch, tokens, channels) a
    square, without their first one if that is what is over (a class token), else a
    column.
    """
    if value.ndim == 4:
        return value
    if value.ndim == 2:
        return value[:, :, None, None]
    tokens = value.shape[1]
    side = math.isqrt(tokens - 1)
    if side > 0 and side * side == tokens - 1:
        value = value[:, 1:]
    else:
        side = math.isqrt(tokens)
        if side * side != tokens:
            return value.transpose(1, 2)[..., None]
    return value.transpose(1, 2).unflatten(2, (side, side))


def pair_stages(
    student: Sequence[Tap], teacher: Sequence[Tap]
) -> list[tuple[int, int]]:
    """Return which stages of two networks belong together, in order.

    Each stage of the network that has fewer is paired with one of the other's, so that
    resolutions are as alike as the order allows; the last go together.
    """
    swap = len(student) > len(teacher)
    few, many = (teacher, student) if swap else (student, teacher)
    spare = len(many) - len(few)
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, -1): (0.0, [])}
    for i, tap in enumerate(few):
        following: dict[tuple[int, int], tuple[float, list[int]]] = {}
        for (_, last), (cost, chosen) in best.items():
            places = range(last + 1, i + spare + 1)
            for j in places if i < len(few) - 1 else [len(many) - 1]:
                total = cost + abs(math.log2(tap.height / many[j].height))
                key = (i + 1, j)
                # of equal costs the later stage wins: it has seen more of the network
                if key not in following or total <= following[key][0]:
                    following[key] = (total, [*chosen, j])
        best = following
    _, chosen = min(reversed(best.values()), key=lambda found: found[0])
    pairs = list(enumerate(chosen))
    return [(j, i) for i, j in pairs] if swap else pairs


@dataclass(frozen=True)
class _Event:
    module: str
    call: int
    side: Literal["output", "input"]
    shape: tuple[int, ...]

    def tap(self) -> Tap:
        _, channels, height, width = as_map(
            torch.empty(self.shape, device="meta")
        ).shape
        return Tap(self.module, self.call, self.side, channels, height, width)


def _record(network: nn.Module, input_shape: InputShape) -> list[_Event]:
    """Run zeros through the network and note every value that a tap could name."""
    events: list[_Event] = []
    calls: dict[str, int] = {}
    handles = []

    def note(name: str, side: Literal["output", "input"], value: Any) -> None:
        if isinstance(value, tuple) and value:
            value = value[0]
        if isinstance(value, Tensor) and value.ndim in (2, 3, 4):
            events.append(_Event(name, calls[name], side, tuple(value.shape)))

    for name, module in network.named_modules():
        if not name:
            continue

        def before(_: nn.Module, args: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            note(name, "input", args[0] if args else None)

        def after(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            note(name, "output", out)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        run_on_zeros(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return events


def _resolutions(seen: Sequence[_Event]) -> list[Tap]:
    """Return the last output at each resolution of a network of maps.

    Outputs of outer modules go before those of inner ones, which may be in the middle
    of a block.
    """
    last: dict[tuple[int, int], _Event] = {}
    for event in seen:
        if event.side == "input" or len(event.shape) != 4 or min(event.shape[2:]) < 2:
            continue
        size = event.shape[2], event.shape[3]
        depth = event.module.count(".")
        if size not in last or depth <= last[size].module.count("."):
            last[size] = event
    return [event.tap() for event in last.values()]


def _blocks(network: nn.Module, seen: Sequence[_Event]) -> list[Tap]:
    """Return outputs of the blocks of the outermost sequence of token layers."""
    outputs = {e.module: e for e in seen if e.side == "output" and len(e.shape) == 3}
    rows: dict[str, list[_Event]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            children = [
                f"{name}.{key}" if name else key for key, _ in module.named_children()
            ]
            rows[name] = [outputs[child] for child in children if child in outputs]
    filled = {name: row for name, row in rows.items() if row}
    if not filled:
        return []
    outer = min(name.count(".") for name in filled)
    blocks = max((r for n, r in filled.items() if n.count(".") == outer), key=len)
    return [event.tap() for event in _spread(blocks)]


def _hidden(network: nn.Module, seen: Sequence[_Event]) -> list[Tap]:
    modules = dict(network.named_modules())
    inputs = [e for e in seen if e.side == "input" and _is_linear(modules[e.module])]
    return [event.tap() for event in _spread(inputs[1:])]


def _spread(events: list[_Event]) -> list[_Event]:
    count = len(events)
    if count <= MAX_STAGES:
        return events
    return [
        events[math.ceil(count * (k + 1) / MAX_STAGES) - 1] for k in range(MAX_STAGES)
    ]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _keep(
    found: dict[Tap, Tensor],
    taps: Sequence[Tap],
    name: str,
    call: int,
    side: str,
    value: Any,
) -> None:
    for tap in taps:
        if (tap.module, tap.call, tap.side) == (name, call, side):
            found[tap] = as_map(value)
