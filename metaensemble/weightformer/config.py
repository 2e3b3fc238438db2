"""The generator's hyperparameters."""

from typing import Literal

from pydantic import Field

from metaensemble.core.config import Config

Reference = Literal[
    "auto",
    "first",
    "mean",
    "aligned_mean",
    "frame",
    "learned_soup",
    "regression_merge",
]
"""What a generator starts from; `GIVEN` are made outside of it."""
GIVEN = ("frame", "learned_soup", "regression_merge")
"""References that are handed to the generator, since weights alone do not give them."""
MERGED = ("learned_soup", "regression_merge")
"""Those that a merger of that name makes, which needs images."""


class WeightFormerConfig(Config):
    """The generator's shape and how its output becomes weights."""

    head: Literal["direct", "residual", "mixture"] = "residual"
    """direct: decoded weights as in the paper; residual: reference + gain * decoded;
    mixture: softmax over teachers per channel + gain * decoded."""
    reference: Reference = "auto"
    """What the residual head adds to: the first teacher; the teachers' mean; the mean
    after their alignment, whatever --align says; the predictor's frame, the same
    network for all teachers; what the merger of that name makes of them, which takes
    images and up to half a minute per set of teachers. auto is the mean where the
    teachers share a start, else the first."""
    readout: Literal["first", "pooled"] = "first"
    """Where the student's channel is read: first, the paper's, at the first teacher's
    slot; pooled, by attention over the slots of all teachers, which then have no ids:
    their order changes nothing, unless the reference is the first."""
    attention: Literal["auto", "full", "axial"] = "auto"
    """full: over all channels of all teachers, the paper's; axial: over the teachers at
    equal channel, then over the channels within a teacher; auto: axial for networks
    with more than 256 channels in a layer."""
    gain: float = Field(default=0.3, ge=0)
    """Size of the residual in units of each layer's weight deviation."""
    offset: bool = False
    """Add to the reference a learned correction per weight, common to all sets of
    teachers: what can be learnt without reading them."""
    data_tokens: int = Field(default=0, ge=0)
    """Unlabelled images from which each channel's token also tells what it does, and
    where the distillation loss at the reference would move it; 0 for none."""
    centre: bool = False
    """Subtract from the decoded tokens their mean over the channels of a layer."""
    width: int = Field(default=128, ge=8)
    """Width of the Transformer."""
    depth: int = Field(default=2, ge=1)
    """Transformer blocks, shared by all layers of the network."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide the width."""
    expansion: float = Field(default=2.0, gt=0)
    """Feed-forward width over the Transformer's width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in the blocks."""
    cross: bool = True
    """Pass the [cross] output of a layer on to the next."""
    max_teachers: int = Field(default=8, ge=1)
    """The largest N; with --readout first also the size of the table of teacher ids."""
