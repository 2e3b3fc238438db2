"""Rules for functions and tensor methods, by their name in torch."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metaensemble.alignment.layers import (
    RULES,
    convolve,
    embed,
    norm_channels,
    project,
    slope,
    transpose_convolve,
)
from metaensemble.alignment.reshaping import (
    chunk,
    concatenate,
    expand,
    getitem,
    move,
    pad,
    repeat,
    reshape,
    unbind,
)
from metaensemble.alignment.spaces import Dim
from metaensemble.alignment.traced import (
    POSITIONS,
    Call,
    Layout,
    Rule,
    Trace,
    Traced,
    unknown,
)

ELEMENTWISE = (
    "add sub mul div truediv neg pow abs exp log sqrt rsqrt square reciprocal sin cos "
    "erf relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid logsigmoid tanh "
    "softplus softsign hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink "
    "threshold dropout dropout1d dropout2d dropout3d alpha_dropout clamp clip clone "
    "detach contiguous to float double half bfloat16 type_as maximum minimum where "
    "iadd isub imul itruediv sign softmax log_softmax normalize zeros_like ones_like"
).split()
"""Each entry of the result depends on the same entry of the operands, or (softmax,
normalize) on all entries alike. Operands are broadcast."""

RESHAPING = (
    "flatten reshape view view_as reshape_as unsqueeze squeeze unflatten".split()
)
MOVING = "transpose permute movedim moveaxis swapaxes swapdims t".split()
REDUCING = "mean sum amax amin prod var std norm logsumexp all any".split()
POOLING = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate"
).split()


def elementwise(trace: Trace, call: Call) -> Layout:
    """Tie the operands, dimension by dimension from the last."""
    dims: list[Dim] = []
    for place in range(1, len(call.shape) + 1):
        size = call.shape[-place]
        same = [
            t.dims[-place]
            for t in call.traced()
            if len(t.shape) >= place and t.shape[-place] == size
        ]
        for other in same[1:]:
            trace.spaces.tie(same[0], other)
        dims.append(same[0])
    return Traced(tuple(call.shape), tuple(reversed(dims)))


def _reduce(trace: Trace, call: Call) -> Layout:
    x = call.args[0]
    name = call.target if isinstance(call.target, str) else call.target.__name__
    if name == "norm" or not isinstance(call.shape, torch.Size):
        return unknown(trace, call)
    over = call.argument(1, "dim", call.kwargs.get("axis"))
    keep = len(call.shape) == len(x.shape)
    if over is None:
        over = tuple(range(len(x.shape)))
    places = {d % len(x.shape) for d in ([over] if isinstance(over, int) else over)}
    dims = [
        trace.fixed(1) if place in places else dim
        for place, dim in enumerate(x.dims)
        if keep or place not in places
    ]
    return Traced(tuple(call.shape), tuple(dims))


def _matmul(trace: Trace, call: Call) -> Layout:
    a, b = call.args[0], call.argument(1, "other", call.kwargs.get("mat2"))
    if len(a.shape) < 2 or len(b.shape) < 2:
        return unknown(trace, call)
    trace.spaces.tie(a.dims[-1], b.dims[-2])
    left, right = (Traced(t.shape[:-2], t.dims[:-2]) for t in (a, b))
    batch = Call(call.name, None, (left, right), {}, call.shape[:-2])
    dims = elementwise(trace, batch).dims
    return Traced(tuple(call.shape), (*dims, a.dims[-2], b.dims[-1]))


def _dot_product_attention(trace: Trace, call: Call) -> Layout:
    q, k, v = (call.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    plain = call.argument(3, "attn_mask") is None and not call.kwargs.get("enable_gqa")
    if not plain or not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2]):
        return unknown(trace, call)
    for place in range(len(q.shape) - 2):
        trace.spaces.tie(q.dims[place], k.dims[place])
        trace.spaces.tie(q.dims[place], v.dims[place])
    trace.spaces.tie(q.dims[-1], k.dims[-1])
    trace.spaces.tie(k.dims[-2], v.dims[-2])
    if call.argument(5, "is_causal", False):
        trace.freeze(q, slice(-2, -1), POSITIONS)
        trace.freeze(k, slice(-2, -1), POSITIONS)
    return Traced(tuple(call.shape), (*q.dims[:-1], v.dims[-1]))


def _linear(trace: Trace, call: Call) -> Layout:
    x, weight = call.args[0], call.argument(1, "weight")
    if not isinstance(weight, Traced) or len(weight.shape) != 2:
        return unknown(trace, call)
    return project(trace, x, weight, call.argument(2, "bias"))[1]


def _conv(trace: Trace, call: Call) -> Layout:
    x, weight = call.args[0], call.argument(1, "weight")
    if not isinstance(weight, Traced):
        return unknown(trace, call)
    return convolve(trace, call, x, weight, call.argument(2, "bias"))


def _conv_transpose(trace: Trace, call: Call) -> Layout:
    x, weight = call.args[0], call.argument(1, "weight")
    if not isinstance(weight, Traced):
        return unknown(trace, call)
    groups = call.argument(6, "groups", 1)
    bias = call.argument(2, "bias")
    return transpose_convolve(trace, call, x, weight, bias, groups)


def _channel_norm(trace: Trace, call: Call) -> Layout:
    x, *vectors = call.traced()
    return norm_channels(trace, x, vectors)


def _group_norm(trace: Trace, call: Call) -> Layout:
    x, *vectors = call.traced()
    return norm_channels(trace, x, vectors, call.argument(1, "num_groups"))


def _prelu(trace: Trace, call: Call) -> Layout:
    return slope(trace, call.args[0], call.argument(1, "weight"))


def _embedding(trace: Trace, call: Call) -> Layout:
    return embed(trace, call, call.args[0], call.argument(1, "weight"))


def _layer_norm(trace: Trace, call: Call) -> Layout:
    x, *affine = call.traced()
    for tensor in affine:
        last = x.dims[-len(tensor.dims) :]
        for mine, its in zip(tensor.dims, last, strict=True):
            trace.spaces.tie(mine, its)
    return x


def _nothing(trace: Trace, call: Call) -> Layout:
    return None


_ATTRIBUTES = {"shape", "ndim", "device", "dtype", "requires_grad", "is_cuda"}


def _attribute(trace: Trace, call: Call) -> Layout:
    x, name = call.args[:2]
    if not isinstance(x, Traced) or name in _ATTRIBUTES:
        return None
    return unknown(trace, call)


_BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(RESHAPING, reshape),
    **dict.fromkeys(MOVING, move),
    **dict.fromkeys(REDUCING, _reduce),
    **dict.fromkeys(POOLING, RULES[nn.MaxPool2d]),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(("chunk", "split", "tensor_split"), chunk),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose
    ),
    **dict.fromkeys(("size", "dim", "numel", "item", "ndimension"), _nothing),
    "getitem": getitem,
    "repeat": repeat,
    "unbind": unbind,
    "pad": pad,
    "linear": _linear,
    "prelu": _prelu,
    "group_norm": _group_norm,
    **dict.fromkeys(("batch_norm", "instance_norm"), _channel_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "scaled_dot_product_attention": _dot_product_attention,
}

FUNCTIONS: dict[Callable[..., Any], Rule] = {
    getattr(space, name): rule
    for base, rule in _BY_NAME.items()
    for name in (base, f"{base}_")
    for space in (torch, F, operator)
    if hasattr(space, name)
} | {getattr: _attribute, F.embedding: _embedding}
"""Function -> rule; the functions themselves, for anybody may call his own `add`."""

MODULES: dict[type[nn.Module], Rule] = {
    **RULES,
    **dict.fromkeys((nn.Flatten, nn.Unflatten), reshape),
    **dict.fromkeys(
        (
            *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
            *(nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh),
            *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
            *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold),
            *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
            *(nn.Softmax, nn.LogSoftmax, nn.Softmax2d),
        ),
        elementwise,
    ),
}
"""Layer -> rule, of all layers."""


def rule_of(target: Any) -> Rule:
    """Return the rule for a module, a function or a method's name."""
    if isinstance(target, str):
        return _BY_NAME.get(target, _BY_NAME.get(target.rstrip("_"), unknown))
    if isinstance(target, nn.Module):
        return MODULES.get(type(target), unknown)
    return FUNCTIONS.get(target, unknown)
