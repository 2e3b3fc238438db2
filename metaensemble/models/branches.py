"""Networks cut in two: a trunk that is shared, and heads that are not.

A network's graph (torch.fx) is cut at a value through which all that follows flows.
Both halves keep the names of their tensors, so that a trunk and a head together are a
state dict of the plain network.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from metaensemble.core.errors import InputError
from metaensemble.models.modes import modes_kept, zeros_for
from metaensemble.models.shapes import InputShape

LATE = 2 / 3
"""Where a network whose values all have one shape is cut: after so many of the values
that a layer reads."""


class Branched(nn.Module):
    """Networks of one architecture that share everything before the cut.

    Args:
        networks: the first lends the trunk, each its head; left as they are.
        input_shape: channels, height, width.

    Raises:
        InputError: a network cannot be traced or cut.
    """

    def __init__(self, networks: Sequence[nn.Module], input_shape: InputShape) -> None:
        super().__init__()
        self.trunk, head = cut(networks[0], input_shape)
        self.branches = nn.ModuleList([head])
        for network in networks[1:]:
            branch, state = copy.deepcopy(head), network.state_dict()
            branch.load_state_dict({name: state[name] for name in head.state_dict()})
            self.branches.append(branch)
        self._plain = (copy.deepcopy(networks[0]),)  # hidden from the parameters

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trunk's value and all branches' logits (branches, batch, classes).

        Args:
            inputs: (batch, channels, height, width).
        """
        value = self.trunk(inputs)
        return value, torch.stack([branch(value) for branch in self.branches])

    def plain(self, branch: int) -> nn.Module:
        """Return the plain network of the trunk and one branch, detached from them."""
        network = copy.deepcopy(self._plain[0]).to(next(self.parameters()).device)
        state = network.state_dict()  # with whatever neither half reads
        state |= self.trunk.state_dict() | self.branches[branch].state_dict()
        network.load_state_dict({name: value.clone() for name, value in state.items()})
        return network


def cut(
    network: nn.Module, input_shape: InputShape
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a network's trunk and head; together they are the network.

    Both have parameters, and none in common. A network whose maps shrink is cut where
    they last do so, before its last stage; any other after two thirds of it.

    Args:
        network: copied.
        input_shape: channels, height, width.

    Raises:
        InputError: the network cannot be traced, looks at its own mode, or has no value
            between two of its layers through which all flows.
    """
    network = copy.deepcopy(network)
    whole = _traced(network)
    place = _place(whole, network, input_shape)
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


class _Tracer(fx.Tracer):
    """Keeps layers whole, a stranger's, too: what they do may depend on their mode."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = not any(True for _ in m.children())
        return layer or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> fx.GraphModule:
    """Return a network as a graph, in the mode in which the network is."""
    graphs: list[fx.Graph] = []
    try:
        with modes_kept(network):
            for mode in (True, False):
                graphs.append(_Tracer().trace(network.train(mode)))
    except Exception as error:  # whatever a stranger's forward raises on proxies
        why = " ".join(str(error).split())
        raise InputError(
            "a network must be traceable by torch.fx to be split into trunk and "
            f"branches, but this {type(network).__name__} is not "
            f"({type(error).__name__}: {why}); choose another architecture"
        ) from error
    if str(graphs[0]) != str(graphs[1]):
        raise InputError(
            "a network must leave what differs between training and evaluation to its "
            "layers to be split into trunk and branches, but the forward of this "
            f"{type(network).__name__} looks at its mode; choose another architecture"
        )
    return fx.GraphModule(network, graphs[0])


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
    whole: fx.GraphModule, network: nn.Module, input_shape: InputShape
) -> fx.Node:
    """Return the node after which to cut."""
    images = zeros_for(network, input_shape, 2)
    with modes_kept(whole), torch.no_grad():
        ShapeProp(whole.eval()).propagate(images)
    inner = _between(whole)
    if not inner:
        raise InputError(
            "a network must have two layers, and a value between them through which "
            "all flows, to be split into trunk and branches, but this "
            f"{type(network).__name__} has none; choose another architecture"
        )
    maps = [n for n in inner if len(_shape(n)) == 4 and _shape(n)[2] > 1]
    larger = [node for node in maps if _shape(node)[2:] != _shape(maps[-1])[2:]]
    if larger:
        return larger[-1]
    tokens = [node for node in inner if len(_shape(node)) == 3]
    same = tokens or maps or inner
    same = [node for node in same if _is_read(whole, node)] or same
    return same[max(1, round(LATE * len(same))) - 1]


def _between(whole: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes past which nothing flows but through them.

    Parameters are read on both sides of each, and none on both of them.
    """
    nodes = list(whole.graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    reads = [_parameters(whole, node) for node in nodes]
    furthest = -1
    found = []
    for i, node in enumerate(nodes):
        if node.op in ("get_attr", "output"):
            continue
        if furthest <= i and node.op != "placeholder" and _shape(node):
            before = set().union(*reads[: i + 1])
            after = set().union(*reads[i + 1 :])
            if before and after and not before & after:
                found.append(node)
        furthest = max([furthest, *(number[user] for user in node.users)])
    return found


def _is_read(whole: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a layer with parameters reads a node."""
    layers = [user for user in node.users if user.op == "call_module"]
    return any(_parameters(whole, layer) for layer in layers)


def _parameters(whole: fx.GraphModule, node: fx.Node) -> set[int]:
    """Return the identities of the parameters that a node reads."""
    if node.op == "call_module":
        module = whole.get_submodule(str(node.target))
        return {id(parameter) for parameter in module.parameters()}
    names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    if not names:
        return set()
    owned = dict(whole.named_parameters(remove_duplicate=False))
    return {id(owned[name]) for name in names if name in owned}


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))
