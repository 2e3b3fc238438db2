"""A predictor's frame: the network to whose order of channels teachers are brought.

Independently trained networks order their channels at random. A generator that was
trained on networks in one order can read others only in that order, so that the same
network serves in training and in every prediction, and lies in the predictor's file.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from metaensemble.alignment import (
    PermutationSpec,
    apply_permutations,
    match_many,
    match_weights,
    spec_for,
)
from metaensemble.core.errors import InputError
from metaensemble.core.states import State
from metaensemble.teachers import MemberInfo
from metaensemble.teachers.member import build_from
from metaensemble.weightformer import complete_state

FrameKind = Literal["first", "merge"]
"""Which network is the frame: the zoo's first member, or the mean of the aligned zoo.
"""


def make_frame(info: MemberInfo, states: Sequence[State], kind: FrameKind) -> State:
    """Return the frame of a zoo.

    Args:
        info: tells the architecture.
        states: the zoo's tensors.
        kind: what it is.

    Raises:
        InputError: for ``merge``, the network's symmetries cannot be derived.
    """
    if kind == "first":
        return dict(states[0])
    spec = _spec(info)
    found = match_many(spec, states)
    aligned = [
        apply_permutations(spec, p, s) for p, s in zip(found, states, strict=True)
    ]
    return complete_state({}, aligned)


def to_frame(
    info: MemberInfo,
    frame: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
) -> list[State]:
    """Return the states with their channels in the order of the frame's.

    Each computes what it did before. Each is matched by its weights and by itself, so
    that a zoo's members and teachers never seen are treated alike.

    Raises:
        InputError: the network's symmetries cannot be derived or are not sound.
    """
    spec = _spec(info)
    return [
        apply_permutations(spec, match_weights(spec, frame, s).permutations, s)
        for s in states
    ]


def _spec(info: MemberInfo) -> PermutationSpec:
    with torch.random.fork_rng():  # building draws initial weights
        network = build_from(info)
    try:
        return spec_for(network, info.input_shape)
    except InputError as error:
        raise InputError(
            f"{error}; or leave the alignment out with --align never"
        ) from error
