"""Layers fitted in closed form to what other networks compute at the same place.

The layers are visited in the order in which they run. Each linear map (convolution or
linear layer, together with the batch norm that directly follows it) is fitted by ridge
regression: from what the student, with all earlier layers fitted, feeds into it, to the
wanted outputs. So errors of early layers are seen, and made up for, by later ones.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

# The only common base of BatchNorm1d, 2d, 3d and SyncBatchNorm.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from metaensemble.core.errors import InputError
from metaensemble.merging.units import Conv, Positions, Targets, Unit, by_position


@torch.no_grad()
def fit_layers(
    graph: fx.GraphModule,
    units: Sequence[Unit],
    batches: Sequence[Tensor],
    targets: Targets,
    positions: Positions,
    ridge: float,
) -> None:
    """Fit the units of a network one after another; its weights change in place.

    All images go through the network once, in step: every operation is computed for all
    of them before the next. Memory: the activations that are still needed, for all
    images.

    Args:
        graph: the traced student in eval mode; its weights are what the ridge pulls to.
        units: what to fit.
        batches: normalised images, those of the targets.
        targets: wanted outputs of the units.
        positions: where they were sampled.
        ridge: weight of the squared distance from the present weights, relative to the
            mean square of the layer's inputs.
    """
    walks = []
    for images in batches:
        walk = fx.Interpreter(graph, garbage_collect_values=False)
        walk.args_iter = iter([images])
        walks.append(walk)
    by_node = {unit.name: unit for unit in units}
    last = _last_uses(graph)
    for node in graph.graph.nodes:
        unit = by_node.get(str(node.target)) if node.op == "call_module" else None
        if unit is not None and unit.name in targets:
            inputs = [walk.env[node.args[0]] for walk in walks]
            _fit(graph, unit, inputs, targets[unit.name], positions, ridge)
        for walk in walks:
            walk.env[node] = walk.run_node(node)
            for dead in last.get(node, ()):
                del walk.env[dead]


def _last_uses(graph: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    dead: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        dead.setdefault(node, []).append(used)
    return dead


def _fit(
    graph: fx.GraphModule,
    unit: Unit,
    inputs: Sequence[Tensor],
    target: Float[Tensor, "samples channels"],
    positions: Positions,
    ridge: float,
) -> None:
    module = graph.get_submodule(unit.name)
    if isinstance(module, BatchNorm | nn.LayerNorm):
        _fit_norm(module, unit, inputs, target, positions)
        return
    assert isinstance(module, nn.Linear | Conv)
    norm = graph.get_submodule(unit.norm) if unit.norm else None
    assert norm is None or isinstance(norm, BatchNorm)
    rows = _patches(module, unit, inputs, positions)  # (groups, samples, fan)
    prior = module.weight.reshape(len(rows), -1, rows.shape[2])  # (groups, out, fan)
    if norm is not None:
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        prior = prior * scale.view(len(rows), -1, 1)
    free = norm is not None or module.bias is not None  # has an intercept
    weight, intercept = ridge_regression(rows, target, prior, ridge, free)
    if norm is None:
        module.weight.copy_(weight.reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(intercept)
        return
    # Batch norm undoes the scale of a weight: keep the one it had, which is what
    # further training is used to.
    wanted = module.weight.flatten(1).norm(dim=1)
    flat = weight.reshape(len(wanted), -1)
    factor = wanted / flat.norm(dim=1).clamp_min(1e-12)
    factor = torch.where(wanted > 0, factor, 1.0)
    pre = rows @ weight.transpose(1, 2)  # (groups, samples, out)
    pre = pre.transpose(0, 1).flatten(1) * factor
    mean, variance = pre.mean(0), pre.var(0)
    module.weight.copy_((flat * factor[:, None]).reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.zero_()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt() / factor)
    norm.bias.copy_(intercept + mean / factor)


def _patches(
    module: nn.Linear | Conv,
    unit: Unit,
    inputs: Sequence[Tensor],
    positions: Positions,
) -> Float[Tensor, "groups samples fan"]:
    """Return what the layer sees at the sampled positions of its output."""
    rows = []
    for batch, x in enumerate(inputs):
        if isinstance(module, nn.Linear):
            seen = x.reshape(len(x), -1, 1, x.shape[-1])  # (images, positions, 1, fan)
        else:
            seen = _unfold(module, x)  # (images, positions, groups, fan)
        chosen = positions.of(unit.name, batch, seen.shape[1])
        rows.append(seen[:, chosen].flatten(0, 1))
    return torch.cat(rows).transpose(0, 1)


def _unfold(conv: Conv, x: Tensor) -> Tensor:
    """Return the patches of a convolution: (images, positions, groups, fan)."""
    assert not isinstance(conv.padding, str)
    pad = [p for p in reversed(conv.padding) for _ in range(2)]
    x = F.pad(x, pad)
    for dim, (size, stride, dilation) in enumerate(
        zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), 2
    ):
        reach = dilation * (size - 1) + 1
        x = x.unfold(dim, reach, stride)[..., ::dilation]
    # (images, channels, *positions, *kernel) -> (images, *positions, channels, kernel)
    rank = len(conv.kernel_size)
    order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    x = x.permute(order)
    positions = math.prod(x.shape[1 : 1 + rank])
    return x.reshape(len(x), positions, conv.groups, -1)


def ridge_regression(
    rows: Float[Tensor, "groups samples fan"],
    target: Float[Tensor, "samples channels"],
    prior: Float[Tensor, "groups out fan"],
    ridge: float,
    intercept: bool,
) -> tuple[Float[Tensor, "groups out fan"], Float[Tensor, " channels"]]:
    """Return weights and intercept that map rows to the target.

    Minimises mean |target - W row - b|^2 + ridge * s * |W - prior|^2, where s is the
    mean square of the (centred) rows. With too few rows for the fan-in, the directions
    that they do not span keep the prior. Products are summed in the rows' precision,
    the system is solved in float64.
    """
    groups, samples, fan = rows.shape
    x, y = rows, target.reshape(samples, groups, -1).transpose(0, 1)
    x_mean = x.mean(1, keepdim=True) if intercept else torch.zeros_like(x[:, :1])
    y_mean = y.mean(1, keepdim=True) if intercept else torch.zeros_like(y[:, :1])
    x = x - x_mean
    error = y - y_mean - x @ prior.transpose(1, 2)
    pull = ridge * samples * x.square().mean((1, 2)).double().clamp_min(1e-12)
    across = x.transpose(1, 2)
    if samples < fan:  # the smaller of two equal systems
        gram = (x @ across).double() + pull[:, None, None] * _eye(samples, x)
        change = across.double() @ torch.linalg.solve(gram, error.double())
    else:
        gram = (across @ x).double() + pull[:, None, None] * _eye(fan, x)
        change = torch.linalg.solve(gram, (across @ error).double())
    weight = prior + change.transpose(1, 2).to(prior.dtype)
    shift = y_mean - x_mean @ weight.transpose(1, 2)
    return weight, shift.transpose(0, 1).reshape(-1)


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=torch.float64, device=like.device)


def _fit_norm(
    norm: BatchNorm | nn.LayerNorm,
    unit: Unit,
    inputs: Sequence[Tensor],
    target: Float[Tensor, "samples channels"],
    positions: Positions,
) -> None:
    """Fit the scale and shift of a norm that no linear map can absorb."""
    if isinstance(norm, BatchNorm):
        flat = torch.cat([by_position(norm, x).flatten(0, 1) for x in inputs])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(flat.mean(0))
        norm.running_var.copy_(flat.var(0))
    elif len(norm.normalized_shape) > 1:
        return
    rows = []
    for batch, x in enumerate(inputs):
        if isinstance(norm, BatchNorm):
            mean, variance = norm.running_mean, norm.running_var
            plain = F.batch_norm(x, mean, variance, eps=norm.eps)
        else:
            plain = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        flat = by_position(norm, plain)
        chosen = positions.of(unit.name, batch, flat.shape[1])
        rows.append(flat[:, chosen].flatten(0, 1))
    x = torch.cat(rows)
    centred = x - x.mean(0)
    spread = centred.square().mean(0)
    slope = (centred * (target - target.mean(0))).mean(0)
    slope = torch.where(spread > 1e-6, slope / spread.clamp_min(1e-6), norm.weight)
    norm.weight.copy_(slope)
    if norm.bias is not None:
        norm.bias.copy_(target.mean(0) - slope * x.mean(0))


def refuse_too_few(samples: int, what: str) -> None:
    """Refuse to fit from fewer than two samples."""
    if samples < 2:
        raise InputError(
            f"fitting layers needs at least two {what}, but got {samples}; "
            "give more training images"
        )
