"""Deriving a network's permutation symmetries from its traced graph."""

from torch import nn

from metaensemble.alignment.graph import graph_of
from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.alignment.traced import INSIDE_ATTENTION, KERNEL, Trace
from metaensemble.alignment.walk import walk
from metaensemble.models.modes import modes_kept, zeros_for


def derive_permutations(
    network: nn.Module, input_shape: tuple[int, ...]
) -> PermutationSpec:
    """Return which channels of a network may change places, and what must follow.

    The network's graph (torch.fx, or torch.export where that fails) runs once on zero
    images, in eval mode and without gradients; modes, weights and buffers stay as they
    are. Whatever has no rule is frozen to the identity and named. Prove a spec before
    its first use: `prove`.

    Args:
        network: maps images (batch, *input_shape) to logits.
        input_shape: channels, height and width of one image.

    Raises:
        InputError: the network cannot be traced, because its control flow depends on
            the data; the message says where.
    """
    images = zeros_for(network, input_shape, 2)
    with modes_kept(network):
        trace = walk(network, graph_of(network.eval(), images), images)
    return PermutationSpec(groups=_groups(trace), frozen=_frozen(trace))


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
