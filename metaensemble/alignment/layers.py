"""Rules for layers: which dimensions their weights tie together."""

from collections.abc import Iterable

from torch import nn

from metaensemble.alignment.attention import attend
from metaensemble.alignment.traced import (
    KERNEL,
    POSITIONS,
    Call,
    Layout,
    Rule,
    Trace,
    Traced,
    unknown,
)


def project(
    trace: Trace, x: Traced, weight: Traced, bias: Traced | None
) -> tuple[Traced, Traced]:
    """Tie a linear layer's input; return its weight and its output."""
    trace.spaces.tie(weight.dims[1], x.dims[-1])
    if bias is not None:
        trace.spaces.tie(bias.dims[0], weight.dims[0])
    shape = (*x.shape[:-1], weight.shape[0])
    return weight, Traced(shape, (*x.dims[:-1], weight.dims[0]))


def convolve(
    trace: Trace, call: Call, x: Traced, weight: Traced, bias: Traced | None
) -> Layout:
    """Tie a convolution, plain, grouped or depthwise.

    The groups move as blocks together with their inputs. A depthwise convolution is the
    case of one input per group; its outputs follow that input.
    """
    spaces = trace.spaces
    rank = len(weight.shape) - 2
    if len(x.shape) != rank + 2 or not call.shape:
        return unknown(trace, call)
    trace.freeze(x, slice(2, None), POSITIONS)
    trace.freeze(weight, slice(2, None), KERNEL)
    groups = x.shape[1] // weight.shape[1]
    if groups == 1:
        spaces.tie(weight.dims[1], x.dims[1])
    else:
        blocks = spaces.outer(x.dims[1], weight.shape[1])
        per_group = weight.shape[0] // groups
        spaces.tie(weight.dims[0], spaces.inner(blocks, per_group))
        why = (
            f"channels inside the {groups} groups of this convolution keep their order"
        )
        if weight.shape[1] > 1 or per_group > 1:
            trace.notes[call.name] = f"{why}; the groups move as blocks"
        spaces.freeze(weight.dims[1], why)
    if bias is not None:
        spaces.tie(bias.dims[0], weight.dims[0])
    positions = tuple(trace.fixed(n) for n in call.shape[2:])
    return Traced(tuple(call.shape), (x.dims[0], weight.dims[0], *positions))


def transpose_convolve(
    trace: Trace,
    call: Call,
    x: Traced,
    weight: Traced,
    bias: Traced | None,
    groups: int,
) -> Layout:
    """Tie a transposed convolution without groups."""
    if groups != 1 or len(x.shape) != len(weight.shape):
        return unknown(trace, call)
    trace.freeze(x, slice(2, None), POSITIONS)
    trace.freeze(weight, slice(2, None), KERNEL)
    trace.spaces.tie(weight.dims[0], x.dims[1])
    if bias is not None:
        trace.spaces.tie(bias.dims[0], weight.dims[1])
    positions = tuple(trace.fixed(n) for n in call.shape[2:])
    return Traced(tuple(call.shape), (x.dims[0], weight.dims[1], *positions))


def embed(trace: Trace, call: Call, x: Traced, weight: Traced) -> Layout:
    """Look up rows of a table, which keep their numbers."""
    trace.freeze(x, slice(None), POSITIONS)
    trace.spaces.freeze(weight.dims[0], "entries of a table keep their numbers")
    return Traced(tuple(call.shape), (*x.dims, weight.dims[1]))


def norm_channels(
    trace: Trace, x: Traced, vectors: Iterable[Traced], heads: int = 1
) -> Traced:
    """Tie what a norm keeps per channel; its groups are heads that stay together."""
    if 1 < heads < x.shape[1]:
        trace.spaces.in_heads(x.dims[1], heads)
    for vector in vectors:
        trace.spaces.tie(vector.dims[0], x.dims[1])
    return x


def slope(trace: Trace, x: Traced, weight: Traced) -> Traced:
    """Tie the slopes of PReLU, unless there is one for all channels."""
    if weight.shape[0] > 1:
        trace.spaces.tie(weight.dims[0], x.dims[1])
    return x


def _linear(trace: Trace, call: Call) -> Layout:
    weight = trace.own(call, "weight")
    assert weight is not None
    return project(trace, call.args[0], weight, trace.own(call, "bias"))[1]


def _conv(trace: Trace, call: Call) -> Layout:
    weight = trace.own(call, "weight")
    assert weight is not None
    return convolve(trace, call, call.args[0], weight, trace.own(call, "bias"))


def _conv_transpose(trace: Trace, call: Call) -> Layout:
    weight, bias = trace.own(call, "weight"), trace.own(call, "bias")
    assert weight is not None
    groups = call.target.groups
    return transpose_convolve(trace, call, call.args[0], weight, bias, groups)


def _channel_norm(trace: Trace, call: Call) -> Layout:
    (x, *_) = call.args
    if len(x.shape) < 2:
        return unknown(trace, call)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [trace.own(call, name) for name in names]
    heads = getattr(call.target, "num_groups", 1)
    return norm_channels(trace, x, filter(None, vectors), heads)


def _layer_norm(trace: Trace, call: Call) -> Layout:
    (x, *_) = call.args
    for name in ("weight", "bias"):
        if affine := trace.own(call, name):
            last = x.dims[-len(affine.dims) :]
            for mine, its in zip(affine.dims, last, strict=True):
                trace.spaces.tie(mine, its)
    return x


def _prelu(trace: Trace, call: Call) -> Layout:
    weight = trace.own(call, "weight")
    assert weight is not None
    return slope(trace, call.args[0], weight)


def _pool(trace: Trace, call: Call) -> Layout:
    (x, *_) = call.args
    if not call.shape or isinstance(call.shape[0], tuple):
        return unknown(trace, call)
    dims = list(x.dims)
    for place, dim in enumerate(dims):
        if place >= 2:
            trace.spaces.freeze(dim, POSITIONS)
            dims[place] = trace.fixed(call.shape[place])
    if tuple(call.shape[:2]) != x.shape[:2]:
        return unknown(trace, call)
    return Traced(tuple(call.shape), tuple(dims))


def _embedding(trace: Trace, call: Call) -> Layout:
    weight = trace.own(call, "weight")
    assert weight is not None
    return embed(trace, call, call.args[0], weight)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: attend,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose
    ),
    **dict.fromkeys(
        (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
            nn.BatchNorm3d,
            nn.SyncBatchNorm,
            nn.GroupNorm,
            nn.InstanceNorm1d,
            nn.InstanceNorm2d,
            nn.InstanceNorm3d,
        ),
        _channel_norm,
    ),
    **dict.fromkeys(
        (
            nn.MaxPool1d,
            nn.MaxPool2d,
            nn.MaxPool3d,
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AvgPool3d,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
            nn.AdaptiveMaxPool1d,
            nn.AdaptiveMaxPool2d,
            nn.AdaptiveMaxPool3d,
            nn.Upsample,
            nn.ZeroPad2d,
            nn.ReflectionPad2d,
            nn.ReplicationPad2d,
        ),
        _pool,
    ),
}
"""Layer -> rule; exact types, for a subclass may compute anything."""
