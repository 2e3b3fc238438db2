"""The rule for `nn.MultiheadAttention`: a group of heads that never leave it."""

from metaensemble.alignment.groups import Axis, Group
from metaensemble.alignment.traced import (
    INSIDE_ATTENTION,
    POSITIONS,
    Call,
    Layout,
    Trace,
    Traced,
    fixed_like,
    unknown,
)


def attend(trace: Trace, call: Call) -> Layout:
    """Tie the width of the tokens; permute the heads, and the channels inside them.

    The group has two parts: the channels in which queries meet keys, and those that
    values hand to the output projection (Vaswani et al. 2017, arXiv 1706.03762,
    section 3.2.2). The heads of both move together.
    """
    module, spaces = call.target, trace.spaces
    query, key, value = (
        call.argument(i, name) for i, name in enumerate(("query", "key", "value"))
    )
    masked = [call.argument(3, "key_padding_mask"), call.argument(5, "attn_mask")]
    averaged = call.argument(6, "average_attn_weights", True)
    if len(query.shape) != 3 or any(m is not None for m in masked) or not averaged:
        return unknown(trace, call)
    width, heads = module.embed_dim, module.num_heads
    packed = module.in_proj_weight is not None
    axes: list[Axis] = []

    def follow(name: str, first: int, dim: int = 0, offset: int = 0) -> None:
        if tensor := trace.own(call, name):
            spaces.freeze(tensor.dims[dim], INSIDE_ATTENTION)
            for alias in trace.names[trace.first_name(f"{call.name}.{name}")]:
                axis = Axis(
                    tensor=alias, dim=dim, offset=offset, first=first, count=width
                )
                axes.append(axis)

    for i, (letter, tokens) in enumerate((("q", query), ("k", key), ("v", value))):
        name = "in_proj_weight" if packed else f"{letter}_proj_weight"
        weight = trace.own(call, name)
        assert weight is not None
        spaces.tie(weight.dims[1], tokens.dims[2])
        first = width if letter == "v" else 0
        follow(name, first, offset=i * width if packed else 0)
        follow("in_proj_bias", first, offset=i * width)
    for name, first in (("bias_k", 0), ("bias_v", width)):
        if bias := trace.own(call, name):
            trace.freeze(bias, slice(0, 2), POSITIONS)
            follow(name, first, dim=2)
    weight = trace.tensor(f"{call.name}.out_proj.weight", f"{call.name}.out_proj")
    bias = trace.tensor(f"{call.name}.out_proj.bias", f"{call.name}.out_proj")
    assert weight is not None
    follow("out_proj.weight", width, dim=1)
    if bias is not None:
        spaces.tie(bias.dims[0], weight.dims[0])
    key_name = trace.first_name(f"{call.name}.out_proj.weight")
    trace.attentions[key_name] = Group(
        name=call.name, size=2 * width, axes=tuple(axes), heads=heads, parts=2
    )
    batch, time = (0, 1) if module.batch_first else (1, 0)
    spaces.tie(key.dims[time], value.dims[time])
    for tokens in (key, value):
        spaces.tie(tokens.dims[batch], query.dims[batch])
    out = Traced(query.shape, (*query.dims[:2], weight.dims[0]))
    weights = call.shape[1]
    if weights is not None:
        for tokens in (query, key):
            spaces.freeze(tokens.dims[time], POSITIONS)
    return out, fixed_like(trace, weights, POSITIONS)
