"""Architectures of falling width, from a network whose channels can be taken out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.compaction import Channels, compact, prunable, slimmed
from metaensemble.models import InputShape


@dataclass(frozen=True)
class Falling:
    """Architectures of falling width."""

    architectures: tuple[str, ...]
    """From the network's own to the narrowest."""
    whole: tuple[str, ...]
    """Layers whose channels are as many in all of them."""
    clamped: tuple[str, ...]
    """Layers that would have no channel in the narrowest and keep one."""


def falling(
    network: nn.Module,
    architecture: str,
    input_shape: InputShape,
    count: int,
    keep: Sequence[str] = (),
) -> Falling:
    """Return so many architectures of falling width.

    The j-th, from 0, has max(1, floor(c (count - j) / count)) of the c channels of
    every group that can be narrowed.

    Args:
        network: stays as it is.
        architecture: of the network.
        input_shape: channels, height, width.
        count: how many architectures.
        keep: layers whose outputs stay.

    Raises:
        InputError: two of them would be alike, or the network cannot be traced.
    """
    channels = prunable(network, input_shape)
    kept = _groups_of(channels, keep)
    narrowed = [i for i in range(len(channels.sizes)) if i not in kept]
    widest = max((channels.sizes[i] for i in narrowed), default=0)
    if not narrowed:
        beside = f" beside its stem ({', '.join(keep)})" if keep else ""
        raise InputError(
            "a network must have channels that can be taken out to have narrower "
            f"students, but {architecture} has none{beside}; choose another --student"
        )
    if widest < count:
        raise InputError(
            f"--students must be at most {widest}, the channels of the widest layer of "
            f"{architecture} that can be narrowed, for else the narrowest student has "
            f"less than one, but is {count}; lower it or choose a wider --student"
        )
    texts = [architecture]
    for j in range(1, count):
        live = _first_channels(channels, kept, count - j, count)
        texts.append(slimmed(architecture, *compact(network, channels, live)))
    whole = (*(channels.names[i] for i in sorted(kept)), *channels.whole)
    clamped = tuple(channels.names[i] for i in narrowed if channels.sizes[i] < count)
    return Falling(tuple(texts), whole, clamped)


def _groups_of(channels: Channels, layers: Sequence[str]) -> set[int]:
    """Return the groups that the outputs of layers belong to."""
    group = torch.repeat_interleave(torch.tensor(channels.sizes, dtype=torch.int64))
    found: set[int] = set()
    for name in layers:
        if name in channels.layers:
            outputs = channels.layers[name].outputs
            found |= set(group[outputs[outputs >= 0]].tolist())
    return found


def _first_channels(channels: Channels, whole: set[int], part: int, of: int) -> Tensor:
    """Return bool (channels,): the first part / of of each group, or all of it."""
    masks = [
        torch.arange(size) < (size if i in whole else max(1, size * part // of))
        for i, size in enumerate(channels.sizes)
    ]
    return torch.cat(masks)
