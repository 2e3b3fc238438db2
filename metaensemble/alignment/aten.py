"""Rules for ATen operations whose arguments differ from those of torch's functions.

`torch.export` writes them; `aten_name` gives the name that the other rules know.
"""

from torch import nn
from torch._ops import OpOverload

from metaensemble.alignment.layers import RULES, embed
from metaensemble.alignment.operations import elementwise, rule_of
from metaensemble.alignment.reshaping import chunk, getitem, pad
from metaensemble.alignment.traced import Call, Layout, Rule, Trace


def aten_rule(target: OpOverload) -> Rule:
    """Return the rule for an ATen operation."""
    name = aten_name(target)
    return _ATEN.get(name) or _ATEN.get(name.rstrip("_")) or rule_of(name)


def aten_name(target: OpOverload) -> str:
    """Return an operation's name without its overload: conv2d of aten.conv2d.default.

    In most cases it is that of the function or method that the user called.
    """
    return target._schema.name.partition("::")[2]


def _slice(trace: Trace, call: Call) -> Layout:
    start, end = call.argument(2, "start"), call.argument(3, "end")
    return _at(trace, call, slice(start, end, call.argument(4, "step", 1)))


def _select(trace: Trace, call: Call) -> Layout:
    return _at(trace, call, call.argument(2, "index"))


def _at(trace: Trace, call: Call, index: int | slice) -> Layout:
    x = call.args[0]
    before = call.argument(1, "dim", 0) % len(x.shape)
    whole = (slice(None),) * before
    arguments = (x, (*whole, index))
    return getitem(trace, Call(call.name, call.target, arguments, {}, call.shape))


def _constant_pad(trace: Trace, call: Call) -> Layout:
    return pad(trace, Call(call.name, call.target, call.args[:2], {}, call.shape))


def _embedding(trace: Trace, call: Call) -> Layout:
    return embed(trace, call, call.argument(1, "indices"), call.args[0])


def _nothing(trace: Trace, call: Call) -> Layout:
    return None


_ATEN: dict[str, Rule] = {
    "slice": _slice,
    "select": _select,
    "constant_pad_nd": _constant_pad,
    "embedding": _embedding,
    **dict.fromkeys(("split_with_sizes", "unsafe_split", "unsafe_chunk"), chunk),
    **dict.fromkeys(
        ("alias", "_to_copy", "lift_fresh_copy", "rsub", "clamp_min", "clamp_max"),
        elementwise,
    ),
    **dict.fromkeys(
        (
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
            *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"),
        ),
        RULES[nn.Upsample],
    ),
    **dict.fromkeys(("_assert_tensor_metadata", "sym_size"), _nothing),
}
