"""Networks with fewer channels than their builder gives them, as text.

``conv1:3>7+bn1:7+layer1.0.conv1:7>5+.bn1:5``: every layer that differs, with the
numbers of its inputs and outputs; a batch norm has one number. A name that begins with
a dot has the parent of the name before it. As the field ``slim`` of an architecture the
text makes a pruned network as plain as any other.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.models.modes import run_on_zeros

Widths = dict[str, tuple[int, int]]
"""Layer -> its inputs and outputs; of a batch norm both are its channels."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ENTRY = re.compile(r"([^:>]+):(\d+)(?:>(\d+))?")


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Return a layer's inputs and outputs, or None if its kind cannot be slimmed.

    Exact types only, for a subclass may compute anything.
    """
    if type(module) in CONVOLUTIONS:
        return module.in_channels, module.out_channels  # pyright: ignore
    if type(module) is nn.Linear:
        return module.in_features, module.out_features
    if type(module) in NORMS:
        return (module.num_features,) * 2  # pyright: ignore
    return None


def parse_slim(text: str) -> Widths:
    """Return what a text says, by the layers' full names.

    Raises:
        InputError: the text is malformed, or has a layer twice.
    """
    found: Widths = {}
    parent = ""
    for entry in text.split("+"):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise InputError(
                "slim must be layers with their inputs and outputs, such as "
                f"conv1:3>7+bn1:7, but {entry!r} is none; correct it"
            )
        name, first, second = match.groups()
        name = parent + name if name.startswith(".") else name
        parent = name.rpartition(".")[0]
        if name in found:
            raise InputError(
                f"slim must name a layer once, but has {name!r} twice; leave one out"
            )
        found[name] = int(first), int(second or first)
    return found


def slim_text(layers: Mapping[str, tuple[int, int]], network: nn.Module) -> str:
    """Return the text that `parse_slim` reads back.

    Args:
        layers: what differs.
        network: whose layers they are; norms are told by it.
    """
    entries: list[str] = []
    before = ""
    for name, (fan_in, fan_out) in layers.items():
        parent, dot, last = name.rpartition(".")
        shown = f".{last}" if dot and entries and parent == before else name
        before = parent
        norm = type(network.get_submodule(name)) in NORMS
        entries.append(f"{shown}:{fan_in}" + ("" if norm else f">{fan_out}"))
    return "+".join(entries)


def apply_slim(network: nn.Module, layers: str | Mapping[str, tuple[int, int]]) -> None:
    """Give layers of a network fewer channels: the first ones of those they have.

    Args:
        network: changed in place.
        layers: what the text ``slim`` says, or the text.

    Raises:
        InputError: there is no such layer, or it cannot have these channels.
    """
    if isinstance(layers, str):
        layers = parse_slim(layers)
    modules = dict(network.named_modules())
    for name, wanted in layers.items():
        module = modules.get(name)
        full = widths(module) if module is not None else None
        if module is None or full is None:
            possible = [key for key, value in modules.items() if widths(value)]
            raise InputError(
                "slim must name convolutions, linear layers or batch norms, but "
                f"{name!r} is none of them; there are {', '.join(possible) or 'none'}"
            )
        if not all(1 <= want <= most for want, most in zip(wanted, full, strict=True)):
            raise InputError(
                f"slim must leave a layer between 1 and all of its channels, but "
                f"{name} has {full[0]}>{full[1]} and is to have "
                f"{wanted[0]}>{wanted[1]}; correct {name!r}"
            )
        _narrow(name, module, full, wanted)


def refuse_unfit(
    network: nn.Module, input_shape: tuple[int, int, int], text: str
) -> None:
    """Run a slimmed network once on zeros, for its layers must fit together.

    Raises:
        InputError: they do not.
    """
    try:
        run_on_zeros(network, input_shape)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise InputError(
            "slim must give layers that fit together, but the network does not run "
            f"({why}); correct slim={text}"
        ) from error


def _narrow(
    name: str, module: nn.Module, full: tuple[int, int], wanted: tuple[int, int]
) -> None:
    fan_in, fan_out = wanted
    if type(module) in NORMS:
        module.num_features = fan_out  # pyright: ignore
        for key in ("weight", "bias"):
            _cut(module, key, (fan_out,))
        for key in ("running_mean", "running_var"):
            value = getattr(module, key)
            if value is not None:
                setattr(module, key, value[:fan_out].clone())
        return
    groups = getattr(module, "groups", 1)
    inside, each = full[0] // groups, full[1] // groups
    if groups > 1:  # whole groups only; of a depthwise convolution they are channels
        groups = fan_in // inside
        if (groups * inside, groups * each) != wanted:
            raise InputError(
                f"slim must keep whole groups of {name}, {inside}>{each} each, but "
                f"{fan_in}>{fan_out} are not as many on both sides; correct {name!r}"
            )
        module.groups = groups  # pyright: ignore
    else:
        inside = fan_in
    sizes = ("in_channels", "out_channels")
    if type(module) is nn.Linear:
        sizes = ("in_features", "out_features")
    for key, value in zip(sizes, wanted, strict=True):
        setattr(module, key, value)
    _cut(module, "weight", (fan_out, inside))
    _cut(module, "bias", (fan_out,))


def _cut(module: nn.Module, key: str, sizes: tuple[int, ...]) -> None:
    value: Tensor | None = getattr(module, key)
    if value is not None:
        part = value.detach()[tuple(slice(size) for size in sizes)].clone()
        setattr(module, key, nn.Parameter(part, requires_grad=value.requires_grad))
