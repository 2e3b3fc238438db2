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
from metaensemble.weightformer.config import GIVEN, WeightFormerConfig
from metaensemble.weightformer.evidence import FEATURES, Evidence
from metaensemble.weightformer.heads import pool, reference_of, weights_of
from metaensemble.weightformer.tokens import (
    LayerSpec,
    TokenSpec,
    read_teachers,
    read_tokens,
    write_tokens,
)

SMALLEST_DEVIATION = 1e-3
"""Floor of a token column's deviation; a part that is constant is left as it is."""
SMALLEST_SLOPE = 1e-12
"""Floor of the unit of a layer's gradients."""
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
        if config.offset:
            self.offsets = nn.ParameterList(
                torch.zeros(layer.rows, layer.width) for layer in spec.layers
            )
        if config.data_tokens:
            self.embed_gradient = nn.ModuleDict(
                {key: nn.Linear(layer.width, width) for key, layer in keys.items()}
            )
            self.embed_activity = nn.Linear(FEATURES, width)
            self.rates = nn.Parameter(torch.zeros(len(spec.layers)))
            self.register_buffer("slope", torch.ones(len(spec.layers)))
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

    @torch.no_grad()
    def standardise_evidence(self, many: Sequence[Evidence]) -> None:
        """Set the unit of each layer's gradients: their root mean square."""
        for i, layer in enumerate(self.spec.layers):
            squares = [read_tokens(layer, one.gradient).square().mean() for one in many]
            mean = torch.stack(squares).mean().sqrt()
            self.get_buffer("slope")[i] = mean.clamp_min(SMALLEST_SLOPE)

    def forward(
        self,
        states: Sequence[Mapping[str, Tensor]],
        shift: int = 0,
        recompute: bool = False,
        base: Mapping[str, Tensor] | None = None,
        evidence: Evidence | None = None,
    ) -> tuple[State, Tensor]:
        """Return the student's parameters and the shift-consistency loss.

        Args:
            states: the teachers' state dicts, in order; the first is the reference of
                the first-teacher readout. They get no gradient.
            shift: tokens by which the second look is shifted; 0 skips it.
            recompute: keep no activations for backward but each layer's [cross];
                backward computes them again, layer by layer.
            base: the reference, where it is not made of the teachers' tokens.
            evidence: what images told, for a generator with data tokens.

        Returns:
            Parameters by name (buffers are not among them), and the mean squared
            difference between the decoded tokens of both looks (0 without a shift).

        Raises:
            InputError: more teachers than ids.
        """
        written, losses = [], []
        for weights, loss in self.layers(states, shift, recompute, base, evidence):
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
        base: Mapping[str, Tensor] | None = None,
        evidence: Evidence | None = None,
        step: float = 1.0,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the tokens of each layer of the student and its shift loss, if any.

        In the order of ``spec.layers``, one at a time: see `forward`.

        Args:
            states: as in `forward`, like what follows.
            shift: tokens by which the second look is shifted.
            recompute: whether backward computes the activations again.
            base: the reference, if given.
            evidence: of the images, if given.
            step: how far to go from the reference (0) to what is predicted (1).

        Raises:
            InputError: too few or too many teachers; base or evidence missing.
        """
        self.refuse_number(len(states))
        self._refuse_missing(base, evidence)
        flow: Tensor = self.cross
        for i in range(len(self.spec.layers)):
            look = partial(self._layer, i, states, shift, base, evidence, step)
            if recompute and torch.is_grad_enabled():
                weights, loss, out = checkpoint(look, flow, use_reentrant=False)
            else:
                weights, loss, out = look(flow)
            if self.config.cross:
                flow = out
            yield weights, loss

    def _layer(
        self,
        index: int,
        states: Sequence[Mapping[str, Tensor]],
        shift: int,
        base: Mapping[str, Tensor] | None,
        evidence: Evidence | None,
        step: float,
        cross: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return one layer's weights as tokens, its shift loss, the next [cross]."""
        layer = self.spec.layers[index]
        mean, deviation = self._statistics(index)
        raw = read_teachers(layer, states, self.cross.device)
        given = None if base is None else read_tokens(layer, base).to(raw.device)
        correction = self.offsets[index] if self.config.offset else None
        told = None
        if evidence is not None and self.config.data_tokens:
            slope = read_tokens(layer, evidence.gradient).to(raw.device)
            slope = slope / self.get_buffer("slope")[index]
            told = self.embed_gradient[layer.key](slope)
            told = told + self.embed_activity(evidence.activity[index].to(raw.device))
            downhill = -self.rates[index] * deviation * slope
            correction = downhill if correction is None else correction + downhill
        decoded, scores, flow = self._look(index, layer, raw, told, cross)
        weights = weights_of(
            self.config, raw, decoded, scores, mean, deviation, given, correction
        )
        if step != 1:
            start = reference_of(self.config, raw, given)
            weights = start + step * (weights - start)
        loss = None
        if shift and layer.rows > shift:
            # The same window, shifted: what both looks see must decode alike.
            seen = None if told is None else told[:, shift:]
            again, _, _ = self._look(index, layer, raw[:, shift:], seen, cross)
            loss = (decoded[shift:] - again).square().mean()
        return weights, loss, flow

    def _look(
        self,
        index: int,
        layer: LayerSpec,
        raw: Float[Tensor, "teachers rows width"],
        told: Float[Tensor, "teachers rows embedded"] | None,
        cross: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer; return decoded slots, mixture scores, next [cross].

        `told` is the embedded evidence, which joins the tokens.
        """
        teachers, rows, _ = raw.shape
        pooled = self.config.readout == "pooled"
        tokens = self._embedded(index, layer, raw)  # (N, rows, width)
        if told is not None:
            tokens = tokens + told
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

    @torch.no_grad()
    def reference(
        self,
        states: Sequence[Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Return the parameters that the generator adds to, before it is trained.

        Buffers are the first teacher's: batch-norm statistics must be re-estimated.
        """
        written = []
        for layer in self.spec.layers:
            raw = read_teachers(layer, states)
            given = None if base is None else read_tokens(layer, base)
            written.append(reference_of(self.config, raw, given))
        rest = {name: states[0][name] for name in states[0]}
        return {**rest, **write_tokens(self.spec, written)}

    def _refuse_missing(
        self, base: Mapping[str, Tensor] | None, evidence: Evidence | None
    ) -> None:
        reference = self.config.reference
        if reference in GIVEN and base is None:
            raise InputError(
                f"a generator with the reference {reference} must be given that "
                "network, but got none; add --data"
            )
        if self.config.data_tokens and evidence is None:
            raise InputError(
                "a generator with data tokens must be given images, but got none; add "
                "--data"
            )

    def refuse_number(self, teachers: int) -> None:
        """Raise `InputError` for no teachers, or more than the generator reads."""
        if not 1 <= teachers <= self.config.max_teachers:
            raise InputError(
                f"this predictor reads 1 to {self.config.max_teachers} teachers, but "
                f"got {teachers}; leave some out, or train one with a larger "
                "--max-teachers"
            )
