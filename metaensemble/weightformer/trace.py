"""Deriving the token spec of any network by running it once and watching its layers."""

import math

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.models.modes import modes_kept
from metaensemble.weightformer.tokens import LayerSpec, Part, TokenSpec

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm2d,
)


def derive_token_spec(network: nn.Module, input_shape: tuple[int, ...]) -> TokenSpec:
    """Return how a network's parameters become tokens, in order of execution.

    The network runs once on a zero image (in eval mode, without gradients; its weights,
    buffers and modes stay as they are). Whatever parameter no known layer holds becomes
    rows of a table, so that every parameter is in exactly one token; this is checked.

    Args:
        network: any module; q, k, v, o of `nn.MultiheadAttention` are layers apart.
        input_shape: channels, height and width of one input.

    Raises:
        InputError: a layer runs on parameters that are not its own floating tensors, or
            the network has no parameters.
    """
    parameters = dict(network.named_parameters())
    if not parameters:
        raise InputError("a network must have parameters to be predicted, but has none")
    calls = _watch(network, input_shape)
    followers = _followers(calls)
    layers: list[LayerSpec] = []
    taken: set[str] = set()
    for name, module in _in_order(network, calls):
        for layer in _layers_of(name, module, followers.get(name)):
            tensors = [part.tensor for part in layer.parts]
            fresh = all(t in parameters for t in tensors) and not taken & set(tensors)
            if fresh or layer.kind == "attention":
                layers.append(layer)
        for layer in layers:
            taken.update(part.tensor for part in layer.parts)
    rest = [_table(n, p) for n, p in parameters.items() if n not in taken]
    layers = _at_their_place(layers, rest, list(parameters))
    spec = TokenSpec(
        layers=tuple(layers),
        shapes={n: tuple(p.shape) for n, p in parameters.items()},
        ties=_ties(network),
    )
    _prove_cover(spec)
    return spec


Call = tuple[str, nn.Module, int, int]  # name, module, id of input, id of output


def _watch(network: nn.Module, input_shape: tuple[int, ...]) -> list[Call]:
    """Return the leaf layers with parameters in the order in which they first run."""
    calls: list[Call] = []
    alive: list[object] = []  # keeps outputs, so that no id is used twice
    seen: set[str] = set()

    def note(name: str, module: nn.Module):
        def hook(_: nn.Module, args: tuple[object, ...], output: object) -> None:
            out = output[0] if isinstance(output, tuple) else output
            alive.extend([args, out])
            if name not in seen:
                seen.add(name)
                calls.append((name, module, id(args[0]) if args else 0, id(out)))

        return hook

    handles = [
        module.register_forward_hook(note(name, module))
        for name, module in network.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or next(module.children(), None) is None
    ]
    parameter = next(network.parameters())
    try:
        image = torch.zeros(1, *input_shape, device=parameter.device)
        with modes_kept(network), torch.no_grad():
            network.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return [call for call in calls if next(call[1].parameters(), None) is not None]


def _followers(calls: list[Call]) -> dict[str, tuple[str, nn.Module]]:
    """Return, per layer, the norm layer whose input is that layer's very output."""
    producers = {output: name for name, _, _, output in calls}
    return {
        producers[source]: (name, module)
        for name, module, source, _ in calls
        if isinstance(module, NORMS) and source in producers
    }


def _in_order(network: nn.Module, calls: list[Call]) -> list[tuple[str, nn.Module]]:
    """Return the layers in order of execution, then those that did not run."""
    ran = [(name, module) for name, module, _, _ in calls]
    names = {name for name, _ in ran}
    idle = [
        (name, module)
        for name, module in network.named_modules()
        if name not in names
        and isinstance(module, (nn.Linear, *CONVS, *NORMS))
        and not any(name.startswith(f"{ran_name}.") for ran_name in names)
    ]
    return ran + idle


def _layers_of(
    name: str, module: nn.Module, follower: tuple[str, nn.Module] | None
) -> list[LayerSpec]:
    if isinstance(module, nn.MultiheadAttention):
        return _attention(name, module)
    if isinstance(module, (nn.Linear, *CONVS)):
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        weight = module.weight
        rows = weight.shape[0]
        parts = [Part(tensor=f"{name}.weight", width=weight[0].numel())]
        if module.bias is not None:
            parts.append(Part(tensor=f"{name}.bias", width=1))
        if follower is not None and _affine_length(follower[1]) == rows:
            parts += _affine(follower[0], follower[1])
        return [LayerSpec(name=name, kind=kind, rows=rows, parts=tuple(parts))]
    if isinstance(module, NORMS) and _affine_length(module):
        parts = _affine(name, module)
        rows = _affine_length(module)
        return [LayerSpec(name=name, kind="norm", rows=rows, parts=tuple(parts))]
    return []


def _attention(name: str, module: nn.MultiheadAttention) -> list[LayerSpec]:
    width = module.embed_dim
    layers = []
    for i, letter in enumerate("qkv"):
        if module.in_proj_weight is not None:
            tensor, fan_in, first = f"{name}.in_proj_weight", width, i * width
        else:
            tensor, first = f"{name}.{letter}_proj_weight", 0
            fan_in = (width, module.kdim or width, module.vdim or width)[i]
        parts = [Part(tensor=tensor, width=fan_in, first_row=first)]
        if module.in_proj_bias is not None:
            bias = f"{name}.in_proj_bias"
            parts.append(Part(tensor=bias, width=1, first_row=i * width))
        layers.append(
            LayerSpec(
                name=f"{name}.{letter}",
                kind="attention",
                rows=width,
                parts=tuple(parts),
            )
        )
    parts = [Part(tensor=f"{name}.out_proj.weight", width=width)]
    if module.out_proj.bias is not None:
        parts.append(Part(tensor=f"{name}.out_proj.bias", width=1))
    out = LayerSpec(name=f"{name}.o", kind="attention", rows=width, parts=tuple(parts))
    return [*layers, out]


def _affine_length(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else 0


def _affine(name: str, module: nn.Module) -> list[Part]:
    parts = [Part(tensor=f"{name}.weight", width=1)]
    if isinstance(getattr(module, "bias", None), Tensor):
        parts.append(Part(tensor=f"{name}.bias", width=1))
    return parts


def _table(name: str, parameter: Tensor) -> LayerSpec:
    """Return a parameter that no known layer holds as rows of a table."""
    if parameter.ndim < 2:
        rows, width = parameter.numel(), 1
    else:
        width = parameter.shape[-1]
        rows = parameter.numel() // width
    part = Part(tensor=name, width=width)
    return LayerSpec(name=name, kind="table", rows=rows, parts=(part,))


def _at_their_place(
    layers: list[LayerSpec], rest: list[LayerSpec], names: list[str]
) -> list[LayerSpec]:
    """Put each table before the first layer whose parameters are registered later."""
    place = {name: i for i, name in enumerate(names)}
    ordered = list(layers)
    for table in rest:
        own = place[table.parts[0].tensor]
        later = [
            i
            for i, layer in enumerate(ordered)
            if layer.kind != "table" and place[layer.parts[0].tensor] > own
        ]
        ordered.insert(later[0] if later else len(ordered), table)
    return ordered


def _ties(network: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that several modules share."""
    first = {parameter: name for name, parameter in network.named_parameters()}
    every = network.named_parameters(remove_duplicate=False)
    return {name: first[p] for name, p in every if first[p] != name}


def _prove_cover(spec: TokenSpec) -> None:
    covered = dict.fromkeys(spec.shapes, 0)
    for layer in spec.layers:
        for part in layer.parts:
            covered[part.tensor] += layer.rows * part.width
    for name, shape in spec.shapes.items():
        if covered[name] != math.prod(shape):
            raise InputError(
                f"every number of the network must be in exactly one token, but "
                f"{covered[name]} of the {math.prod(shape)} in {name!r} would be; "
                "rename or restructure this layer"
            )
