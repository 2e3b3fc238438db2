"""Weights as tokens: one token per output channel, and back again, bit for bit.

The token of channel j of a layer is its incoming weights flattened, then its bias, then
the scale and shift of the norm layer that directly follows (Fei et al. 2022, section
3.1: n_out tokens of k*k*n_in; biases and norms are ours). A parameter without such a
layer, such as a class token or a position table, contributes its rows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.states import State

Kind = Literal["conv", "linear", "attention", "norm", "table"]
"""What a layer is; with the token's width it selects the weight embedder."""


class Part(Config):
    """A block of columns of a layer's tokens, and the tensor that they come from."""

    tensor: str
    """Name of the parameter."""
    width: int
    """Columns: numbers per output channel."""
    first_row: int = 0
    """The parameter's row that becomes token 0 (q, k, v lie in one tensor)."""


class LayerSpec(Config):
    """The tokens of one layer: `rows` of them, each `width` numbers."""

    name: str
    """The module's name, with ``.q``, ``.k``, ``.v`` or ``.o`` in attention."""
    kind: Kind
    """What the layer is."""
    rows: int
    """Number of tokens, the output channels n_out."""
    parts: tuple[Part, ...]
    """The blocks of columns, in order."""

    @property
    def width(self) -> int:
        """Return the numbers per token."""
        return sum(part.width for part in self.parts)

    @property
    def key(self) -> str:
        """Return the name of the weight embedder, shared by layers of equal shape."""
        return f"{self.kind}_{'_'.join(str(part.width) for part in self.parts)}"


class TokenSpec(Config):
    """How all parameters of an architecture map to tokens, in order of execution."""

    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    """The layers in the order in which the network runs them."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every parameter."""
    ties: dict[str, str] = Field(default_factory=dict)
    """Further names of parameters that have several: name to its name in `shapes`."""

    @property
    def most_rows(self) -> int:
        """Return the largest number of tokens that a layer has."""
        return max(layer.rows for layer in self.layers)


def read_tokens(
    layer: LayerSpec, state: Mapping[str, Tensor]
) -> Float[Tensor, "rows width"]:
    """Return the tokens of one layer of a state dict, as float32."""
    columns = []
    for part in layer.parts:
        rows = state[part.tensor].reshape(-1, part.width)
        columns.append(rows[part.first_row : part.first_row + layer.rows])
    return torch.cat(columns, dim=1).float()


def read_teachers(
    layer: LayerSpec,
    states: Sequence[Mapping[str, Tensor]],
    device: torch.device | None = None,
) -> Float[Tensor, "teachers rows width"]:
    """Return the tokens of one layer of several state dicts, as float32 on a device.

    Of states that are read from their files (`LazyState`) hardly more than this layer
    is held.
    """
    raw = torch.empty(len(states), layer.rows, layer.width, device=device)
    for state, tokens in zip(states, raw, strict=True):
        start = 0
        for part in layer.parts:
            rows = state[part.tensor].detach().reshape(-1, part.width)
            rows = rows[part.first_row : part.first_row + layer.rows]
            tokens[:, start : start + part.width] = rows
            start += part.width
    return raw


def write_layer(
    layer: LayerSpec, tokens: Float[Tensor, "rows width"], state: State
) -> None:
    """Write the tokens of one layer into contiguous tensors of a state dict."""
    blocks = tokens.split([part.width for part in layer.parts], dim=1)
    for part, block in zip(layer.parts, blocks, strict=True):
        rows = state[part.tensor].view(-1, part.width)
        rows[part.first_row : part.first_row + layer.rows] = block


def write_tokens(spec: TokenSpec, tokens: Sequence[Float[Tensor, "_ _"]]) -> State:
    """Return the parameters that the tokens of all layers stand for.

    The inverse of `read_tokens` over ``spec.layers``; gradients pass through.

    Args:
        spec: the mapping.
        tokens: one tensor (rows, width) per layer of the spec.
    """
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for layer, rows in zip(spec.layers, tokens, strict=True):
        blocks = rows.split([part.width for part in layer.parts], dim=1)
        for part, block in zip(layer.parts, blocks, strict=True):
            pieces.setdefault(part.tensor, []).append((part.first_row, block))
    state: State = {}
    for name, blocks in pieces.items():
        ordered = [block for _, block in sorted(blocks, key=lambda item: item[0])]
        whole = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
        # Dense, not a view of the tokens' columns: torch 2.13 on the CPU returns wrong
        # gradients, silently, for convolutions of channels-last inputs with such views.
        state[name] = whole.reshape(spec.shapes[name]).contiguous()
    state.update({alias: state[name] for alias, name in spec.ties.items()})
    return state
