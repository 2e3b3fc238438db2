"""The generator: N state dicts in, the parameters of one student out, in one pass.

For each layer of the network, in order of execution (Fei et al. 2022, figure 2):

1. read one token per output channel of every teacher, standardised;
2. embed them by the linear map of their kind and width (the weight embedder dict), add
   the teacher's id, the position inside the teacher and the layer's depth;
3. put the [cross] token in front, run the shared Transformer blocks;
4. decode the slots of the first teacher, or slots pooled over the teachers, by the
   inverse embedder: the student's layer;
5. hand the [cross] output on: it enters the next layer (cross-layer flow).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaensemble.core.errors import InputError
from metaensemble.core.states import State
from metaensemble.weightformer.attention import Block
from metaensemble.weightformer.config import WeightFormerConfig
from metaensemble.weightformer.heads import pool, weights_of
from metaensemble.weightformer.tokens import (
    LayerSpec,
    TokenSpec,
    read_teachers,
    write_tokens,
)

SMALLEST_DEVIATION = 1e-3
"""Floor of a token column's deviation; a part that is constant is left as it is."""
AXIAL_BEYOND = 256
"""With more channels in a layer than these, auto attention is axial."""
CHUNK = 2**21
"""Numbers of a layer's tokens that are standardised and embedded at a time."""


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
        if config.attention == "auto":
            kind = "axial" if spec.most_rows > AXIAL_BEYOND else "full"
            config = config.model_copy(update={"attention": kind})
        self.config = config
        self.spec = spec
        axial = config.attention == "axial"
        pooled = config.readout == "pooled"
        width = config.width
        keys = {layer.key: layer for layer in spec.layers}
        self.embed = nn.ModuleDict(
            {key: nn.Linear(layer.width, width) for key, layer in keys.items()}
        )
        self.decode = nn.ModuleDict(
            {key: nn.Linear(width, layer.width) for key, layer in keys.items()}
        )
        self.position = nn.Embedding(spec.most_rows + 1, width)
        self.model_id = nn.Embedding(2 if pooled else config.max_teachers + 1, width)
        self.layer_depth = nn.Embedding(len(spec.layers), width)
        self.cross = nn.Parameter(torch.zeros(width))
        self.cross_flow = nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.expansion, config.dropout, axial)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        for i, layer in enumerate(spec.layers):
            self.register_buffer(f"mean_{i}", torch.zeros(layer.width))
            self.register_buffer(f"deviation_{i}", torch.ones(layer.width))
        if pooled:
            # No bias: it would be common to all teachers, and cancel in their softmax.
            self.pool = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.pool.weight)  # at first the plain mean
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
            tokens = read_teachers(layer, states, self.cross.device)
            mean, deviation = self._statistics(i)
            start = 0
            for part in layer.parts:
                block = tokens[..., start : start + part.width]
                mean[start : start + part.width] = block.mean()
                spread = block.std(correction=0).clamp_min(SMALLEST_DEVIATION)
                deviation[start : start + part.width] = spread
                start += part.width

    def forward(
        self,
        states: Sequence[Mapping[str, Tensor]],
        shift: int = 0,
        recompute: bool = False,
    ) -> tuple[State, Tensor]:
        """Return the student's parameters and the shift-consistency loss.

        Args:
            states: the teachers' state dicts, in order; the first is the reference of
                the first-teacher readout. They get no gradient.
            shift: tokens by which the second look is shifted; 0 skips it.
            recompute: keep no activations for backward but each layer's [cross];
                backward computes them again, layer by layer.

        Returns:
            Parameters by name (buffers are not among them), and the mean squared
            difference between the decoded tokens of both looks (0 without a shift).

        Raises:
            InputError: more teachers than ids.
        """
        written, losses = [], []
        for weights, loss in self.layers(states, shift, recompute):
            written.append(weights)
            if loss is not None:
                losses.append(loss)
        total = torch.stack(losses).mean() if losses else self.cross.new_zeros(())
        return write_tokens(self.spec, written), total

    def layers(
        self,
        states: Sequence[Mapping[str, Tensor]],
        shift: int = 0,
        recompute: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the tokens of each layer of the student and its shift loss, if any.

        In the order of ``spec.layers``, one at a time: see `forward`.
        """
        self.refuse_number(len(states))
        flow: Tensor = self.cross
        for i in range(len(self.spec.layers)):
            step = partial(self._layer, i, states, shift)
            if recompute and torch.is_grad_enabled():
                weights, loss, out = checkpoint(step, flow, use_reentrant=False)
            else:
                weights, loss, out = step(flow)
            if self.config.cross:
                flow = out
            yield weights, loss

    def _layer(
        self,
        index: int,
        states: Sequence[Mapping[str, Tensor]],
        shift: int,
        cross: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return one layer's weights as tokens, its shift loss, the next [cross]."""
        layer = self.spec.layers[index]
        mean, deviation = self._statistics(index)
        raw = read_teachers(layer, states, self.cross.device)
        decoded, scores, flow = self._look(index, layer, raw, cross)
        weights = weights_of(self.config, raw, decoded, scores, mean, deviation)
        loss = None
        if shift and layer.rows > shift:
            # The same window, shifted: what both looks see must decode alike.
            again, _, _ = self._look(index, layer, raw[:, shift:], cross)
            loss = (decoded[shift:] - again).square().mean()
        return weights, loss, flow

    def _look(
        self,
        index: int,
        layer: LayerSpec,
        raw: Float[Tensor, "teachers rows width"],
        cross: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer; return decoded slots, mixture scores, next [cross]."""
        teachers, rows, _ = raw.shape
        pooled = self.config.readout == "pooled"
        tokens = self._embedded(index, layer, raw)  # (N, rows, width)
        ids = self.model_id.weight
        places = self.position.weight
        own = ids[1:2] if pooled else ids[1 : teachers + 1]
        tokens = tokens + own[:, None] + places[None, 1 : rows + 1]
        head = cross + ids[0] + places[1]
        sequence = torch.cat([head[None], tokens.flatten(0, 1)])
        sequence = sequence + self.layer_depth.weight[index]
        for block in self.blocks:
            sequence = block(sequence, teachers)
        sequence = self.norm(sequence)
        if pooled:
            slots = sequence[1:].view(teachers, rows, -1)
            slots = pool(slots, self.pool(slots))
        else:
            slots = sequence[1 : rows + 1]
        decoded = self.decode[layer.key](slots)
        scores = self.score(sequence[1:]).view(teachers, rows, 1)
        return decoded, scores, self.cross_flow(sequence[0])

    def _embedded(self, index: int, layer: LayerSpec, raw: Tensor) -> Tensor:
        """Return the tokens standardised and embedded, large layers in chunks."""
        mean, deviation = self._statistics(index)
        embed = self.embed[layer.key]
        if raw.numel() <= CHUNK:
            return embed((raw - mean) / deviation)
        chunks = raw.reshape(-1, layer.width).split(max(1, CHUNK // layer.width))
        embedded = [embed((chunk - mean).div_(deviation)) for chunk in chunks]
        return torch.cat(embedded).view(*raw.shape[:2], -1)

    def _statistics(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{index}"), self.get_buffer(f"deviation_{index}")

    def refuse_number(self, teachers: int) -> None:
        """Raise `InputError` for no teachers, or more than the generator reads."""
        if not 1 <= teachers <= self.config.max_teachers:
            raise InputError(
                f"this predictor reads 1 to {self.config.max_teachers} teachers, but "
                f"got {teachers}; leave some out, or train one with a larger "
                "--max-teachers"
            )
