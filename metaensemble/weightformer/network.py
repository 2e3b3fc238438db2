"""The generator: N state dicts in, the parameters of one student out, in one pass.

For each layer of the network, in order of execution (Fei et al. 2022, figure 2):

1. read one token per output channel of every teacher, standardised;
2. embed them by the linear map of their kind and width (the weight embedder dict), add
   the teacher's id, the position inside the teacher and the layer's depth;
3. put the [cross] token in front, run the shared Transformer blocks;
4. decode the slots of the first teacher by the inverse embedder: the student's layer;
5. hand the [cross] output on: it enters the next layer (cross-layer flow).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.states import State
from metaensemble.weightformer.attention import Block
from metaensemble.weightformer.tokens import (
    LayerSpec,
    TokenSpec,
    read_tokens,
    write_tokens,
)

SMALLEST_DEVIATION = 1e-3
"""Floor of a token column's deviation; a part that is constant is left as it is."""


class WeightFormerConfig(Config):
    """The generator's shape and how its output becomes weights."""

    head: Literal["direct", "residual", "mixture"] = "residual"
    """direct: decoded weights as in the paper; residual: reference + gain * decoded;
    mixture: softmax over teachers per channel + gain * decoded."""
    reference: Literal["auto", "first", "mean"] = "auto"
    """What the residual head adds to: the first teacher, or the teachers' mean; auto is
    the mean where the teachers share a start, else the first."""
    gain: float = Field(default=0.3, ge=0)
    """Size of the residual in units of each layer's weight deviation."""
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
    """Size of the table of teacher ids: the largest N."""


class WeightFormer(nn.Module):
    """The generator for one architecture.

    Args:
        config: shape and head.
        spec: the architecture's tokens.
    """

    def __init__(self, config: WeightFormerConfig, spec: TokenSpec):
        super().__init__()
        if config.width % config.heads:
            raise InputError(
                f"the width must be a multiple of the heads, but {config.width} is not "
                f"one of {config.heads}; choose, say, --width {config.heads * 32}"
            )
        self.config = config
        self.spec = spec
        width = config.width
        keys = {layer.key: layer for layer in spec.layers}
        self.embed = nn.ModuleDict(
            {key: nn.Linear(layer.width, width) for key, layer in keys.items()}
        )
        self.decode = nn.ModuleDict(
            {key: nn.Linear(width, layer.width) for key, layer in keys.items()}
        )
        self.position = nn.Embedding(spec.most_rows + 1, width)
        self.model_id = nn.Embedding(config.max_teachers + 1, width)
        self.layer_depth = nn.Embedding(len(spec.layers), width)
        self.cross = nn.Parameter(torch.zeros(width))
        self.cross_flow = nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.expansion, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        for i, layer in enumerate(spec.layers):
            self.register_buffer(f"mean_{i}", torch.zeros(layer.width))
            self.register_buffer(f"deviation_{i}", torch.ones(layer.width))
        self._initialise()

    def _initialise(self) -> None:
        for table in (self.position, self.model_id, self.layer_depth):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.cross, std=0.02)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        for decoder in self.decode.values():
            assert isinstance(decoder, nn.Linear)
            nn.init.zeros_(decoder.bias)
            if self.config.head == "direct":
                # Unit variance out of normalised features: weights of the right scale.
                nn.init.normal_(decoder.weight, std=self.config.width**-0.5)
            else:
                nn.init.zeros_(decoder.weight)  # step 0 is the reference, exactly

    @torch.no_grad()
    def standardise(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the token statistics from the teachers' weights.

        One mean and one deviation per layer and part, over all teachers.
        """
        for i, layer in enumerate(self.spec.layers):
            tokens = torch.stack([read_tokens(layer, s) for s in states])
            mean, deviation = self._statistics(i)
            start = 0
            for part in layer.parts:
                block = tokens[..., start : start + part.width]
                mean[start : start + part.width] = block.mean()
                spread = block.std(correction=0).clamp_min(SMALLEST_DEVIATION)
                deviation[start : start + part.width] = spread
                start += part.width

    def forward(
        self, states: Sequence[Mapping[str, Tensor]], shift: int = 0
    ) -> tuple[State, Tensor]:
        """Return the student's parameters and the shift-consistency loss.

        Args:
            states: the teachers' state dicts, in order; the first is the reference of
                the first-teacher readout. They get no gradient.
            shift: tokens by which the second look is shifted; 0 skips it.

        Returns:
            Parameters by name (buffers are not among them), and the mean squared
            difference between the decoded tokens of both looks (0 without a shift).

        Raises:
            InputError: more teachers than ids.
        """
        self._refuse_number(len(states))
        cross = self.cross
        written, losses = [], []
        for i, layer in enumerate(self.spec.layers):
            raw = torch.stack([read_tokens(layer, s) for s in states]).detach()
            decoded, scores, flow = self._look(i, layer, raw, cross)
            written.append(self._weights(i, raw, decoded, scores))
            if shift and layer.rows > shift:
                # The same window, shifted: what both looks see must decode alike.
                again, _, _ = self._look(i, layer, raw[:, shift:], cross)
                losses.append((decoded[shift:] - again).square().mean())
            if self.config.cross:
                cross = flow
        total = torch.stack(losses).mean() if losses else self.cross.new_zeros(())
        return write_tokens(self.spec, written), total

    def _look(
        self,
        index: int,
        layer: LayerSpec,
        raw: Float[Tensor, "teachers rows width"],
        cross: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer; return decoded first slots, mixture scores, next [cross]."""
        teachers, rows, _ = raw.shape
        mean, deviation = self._statistics(index)
        tokens = self.embed[layer.key]((raw - mean) / deviation)  # (N, rows, width)
        ids = self.model_id.weight
        places = self.position.weight
        tokens = tokens + ids[1 : teachers + 1, None] + places[None, 1 : rows + 1]
        head = cross + ids[0] + places[1]
        sequence = torch.cat([head[None], tokens.flatten(0, 1)])
        sequence = sequence + self.layer_depth.weight[index]
        for block in self.blocks:
            sequence = block(sequence)
        sequence = self.norm(sequence)
        decoded = self.decode[layer.key](sequence[1 : rows + 1])
        scores = self.score(sequence[1:]).view(teachers, rows, 1)
        return decoded, scores, self.cross_flow(sequence[0])

    def _weights(
        self,
        index: int,
        raw: Float[Tensor, "teachers rows width"],
        decoded: Float[Tensor, "rows width"],
        scores: Float[Tensor, "teachers rows 1"],
    ) -> Float[Tensor, "rows width"]:
        mean, deviation = self._statistics(index)
        config = self.config
        if config.head == "direct":
            return mean + deviation * decoded
        if config.centre:
            decoded = decoded - decoded.mean(0, keepdim=True)
        if config.head == "mixture":
            base = (scores.softmax(0) * raw).sum(0)
        else:
            base = raw.mean(0) if config.reference == "mean" else raw[0]
        return base + config.gain * deviation * decoded

    def _statistics(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{index}"), self.get_buffer(f"deviation_{index}")

    def _refuse_number(self, teachers: int) -> None:
        if not 1 <= teachers <= self.config.max_teachers:
            raise InputError(
                f"this predictor reads 1 to {self.config.max_teachers} teachers, but "
                f"got {teachers}; leave some out, or train one with a larger "
                "--max-teachers"
            )
