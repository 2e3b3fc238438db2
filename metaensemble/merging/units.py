"""What of a network can be fitted layer by layer, and where its outputs are sampled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

# The only common base of BatchNorm1d, 2d, 3d and SyncBatchNorm.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Targets = dict[str, Float[Tensor, "samples channels"]]
"""Unit -> wanted outputs at the sampled positions of the images."""


@dataclass(frozen=True)
class Unit:
    """Something to fit: a linear map with the batch norm behind it, or a lone norm."""

    name: str
    """Of the linear layer, or of the norm where it stands alone."""
    norm: str | None
    """Of the batch norm that takes this layer's output and nothing else, if any."""
    is_head: bool
    """Whether its output is the network's output."""

    @property
    def output(self) -> str:
        """Return the name of the module whose output is fitted."""
        return self.norm or self.name


def traced(network: nn.Module) -> fx.GraphModule:
    """Return the network's graph, on the network's own tensors.

    Raises:
        InputError: torch.fx cannot trace it.
    """
    try:
        return fx.symbolic_trace(network)
    except Exception as error:  # a proxy in a condition raises all sorts of things
        text = " ".join(str(error).split())[:160]
        raise InputError(
            "layers can be fitted one after another only if torch.fx can trace the "
            f"network, but tracing failed ({text}); take what depends on shapes or "
            "data out of the control flow, or choose repair or kd"
        ) from error


def find_units(graph: fx.GraphModule) -> list[Unit]:
    """Return what can be fitted, in order of execution.

    A module that runs more than once is left out, as is what is no plain call of a
    module (parameters used directly, attention).
    """
    modules = dict(graph.named_modules())
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    once = {name for name in targets if targets.count(name) == 1}
    result = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    units: list[Unit] = []
    taken: set[str] = set()
    for node, name in zip(calls, targets, strict=True):
        if name not in once or name in taken:
            continue
        module = modules[name]
        if isinstance(module, nn.Linear | Conv) and _plain(module):
            follower = _norm_behind(node, modules, once)
            taken.update({name, follower or name})
            units.append(Unit(name, follower, node is result))
        elif isinstance(module, BatchNorm | nn.LayerNorm) and module.weight is not None:
            units.append(Unit(name, None, False))
    return units


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or getattr(module, "padding_mode", "") in (
        "zeros",
        "",
    )


def _norm_behind(
    node: fx.Node, modules: Mapping[str, nn.Module], once: set[str]
) -> str | None:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    name = str(users[0].target)
    norm = modules[name]
    fits = isinstance(norm, BatchNorm) and norm.affine and norm.track_running_stats
    return name if fits and name in once else None


class Positions:
    """Which positions of each batch of images count, the same for every network.

    Args:
        samples: how many positions per layer, over all images.
        images: how many images there are.
        seed: of the choice.
    """

    def __init__(self, samples: int, images: int, seed: int) -> None:
        self.per_image = max(1, math.ceil(samples / images))
        self.seed = seed

    def of(self, name: str, batch: int, available: int) -> Tensor:
        """Return the positions of a unit's output, of `available` in every image."""
        if available <= self.per_image:
            return torch.arange(available)
        return permutation(available, self.seed, name, batch)[: self.per_image]


def outputs_of(
    network: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Tensor],
    positions: Positions,
) -> Targets:
    """Return a network's outputs at every unit, at the sampled positions."""
    rows: dict[str, list[Tensor]] = {unit.name: [] for unit in units}
    batch = 0

    def note(unit: Unit):
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            flat = by_position(module, output)
            chosen = positions.of(unit.name, batch, flat.shape[1])
            rows[unit.name].append(flat[:, chosen].flatten(0, 1))

        return hook

    handles = [
        network.get_submodule(unit.output).register_forward_hook(note(unit))
        for unit in units
    ]
    try:
        with torch.no_grad():
            for batch, images in enumerate(batches):  # noqa: B007 (the hooks read it)
                network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def by_position(module: nn.Module, values: Tensor) -> Tensor:
    """Return (images, positions, channels)."""
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return values.reshape(len(values), -1, values.shape[-1])
    return values.flatten(2).transpose(1, 2) if values.ndim > 2 else values[:, None]
