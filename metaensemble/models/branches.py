"""Networks cut in two: a trunk that is shared, and heads that are not.

A network's graph (torch.fx) is cut at a value through which all that follows flows.
Both halves keep the names of their tensors, so that a trunk and a head together are a
state dict of the plain network.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from metaensemble.core.errors import InputError
from metaensemble.models.shapes import InputShape

LATE = 2 / 3
"""Where a network whose values all have one shape is cut: after so much of it."""


class Branched(nn.Module):
    """Networks of one architecture that share everything before the cut.

    Args:
        networks: the first lends the trunk, each its head; left as they are.
        input_shape: channels, height, width.
        early: cut after the first stage (its last value at the first resolution)
            instead of before the last one.

    Raises:
        InputError: a network cannot be traced or cut.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        input_shape: InputShape,
        *,
        early: bool = False,
    ) -> None:
        super().__init__()
        halves = [cut(network, input_shape, early=early) for network in networks]
        self.trunk = halves[0][0]
        self.branches = nn.ModuleList(head for _, head in halves)
        self._plain = [copy.deepcopy(network) for network in networks]
        for network in self._plain:
            network.requires_grad_(False)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trunk's value and all branches' logits (branches, batch, classes).

        Args:
            inputs: (batch, channels, height, width).
        """
        value = self.trunk(inputs)
        return value, torch.stack([branch(value) for branch in self.branches])

    def plain(self, branch: int) -> nn.Module:
        """Return the plain network of the trunk and one branch, detached from them."""
        network = copy.deepcopy(self._plain[branch])
        device = next(self.parameters()).device
        state = network.state_dict()  # with whatever neither half reads
        state |= self.trunk.state_dict() | self.branches[branch].state_dict()
        network.load_state_dict({name: value.clone() for name, value in state.items()})
        return network.to(device).requires_grad_(True)


def cut(
    network: nn.Module, input_shape: InputShape, *, early: bool = False
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a network's trunk and head; together they are the network.

    Args:
        network: copied.
        input_shape: channels, height, width.
        early: cut after the first stage instead of before the last.

    Raises:
        InputError: the network cannot be traced, or nothing but its logits is a value
            through which all flows.
    """
    network = copy.deepcopy(network)
    try:
        whole = fx.symbolic_trace(network)
    except Exception as error:  # whatever a stranger's forward raises on proxies
        raise InputError(
            "a network must be traceable by torch.fx to be split into trunk and "
            f"branches, but this {type(network).__name__} is not "
            f"({type(error).__name__}: {error}); choose another architecture"
        ) from error
    place = _place(whole, network, input_shape, early)
    nodes = list(whole.graph.nodes)
    border = nodes.index(place) + 1
    trunk, head = fx.Graph(), fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in _with_attributes(nodes[:border], nodes):
        known[node] = trunk.node_copy(node, known.__getitem__)
    trunk.output(known[place])
    known = {place: head.placeholder("value")}
    for node in _with_attributes(nodes[border:], nodes):
        known[node] = head.node_copy(node, known.__getitem__)
    return (
        fx.GraphModule(copy.deepcopy(network), trunk),
        fx.GraphModule(copy.deepcopy(network), head),
    )


def _with_attributes(
    part: Sequence[fx.Node], nodes: Sequence[fx.Node]
) -> list[fx.Node]:
    """Return a part of a graph with just the parameters that it reads."""
    inside = set(part)
    return [
        node
        for node in nodes
        if (node.op == "get_attr" and inside & set(node.users))
        or (node.op != "get_attr" and node in inside)
    ]


def _place(
    whole: fx.GraphModule, network: nn.Module, input_shape: InputShape, early: bool
) -> fx.Node:
    """Return the node after which to cut."""
    first = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, *input_shape, device=first.device, dtype=first.dtype)
    modes = {module: module.training for module in whole.modules()}
    with torch.no_grad():
        ShapeProp(whole.eval()).propagate(images)
    for module, mode in modes.items():
        module.training = mode
    nodes = list(whole.graph.nodes)
    shapes = {node: _shape(node) for node in _narrow(nodes) if _shape(node)}
    logits = max(shapes, key=nodes.index, default=None)
    inner = [node for node in shapes if node is not logits]
    if not inner:
        raise InputError(
            "a network must have a layer before its last one to be split into trunk "
            f"and branches, but this {type(network).__name__} has none; "
            "choose another architecture"
        )
    maps = [node for node in inner if len(shapes[node]) == 4 and shapes[node][2] > 1]
    sizes = [shapes[node][2:] for node in maps]
    if len(set(sizes)) > 1:
        if early:
            return [n for n, size in zip(maps, sizes, strict=True) if size == sizes[0]][
                -1
            ]
        return [n for n, size in zip(maps, sizes, strict=True) if size != sizes[-1]][-1]
    tokens = [node for node in inner if len(shapes[node]) == 3]
    same = tokens or maps or inner
    part = 0 if early else math.ceil(LATE * len(same)) - 1
    return same[part]


def _narrow(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes past which nothing flows but through them."""
    number = {node: i for i, node in enumerate(nodes)}
    furthest = -1
    found = []
    for i, node in enumerate(nodes):
        if node.op in ("get_attr", "output"):
            continue
        if furthest <= i and node.op != "placeholder":
            found.append(node)
        furthest = max([furthest, *(number[user] for user in node.users)])
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))
