"""Vision Transformer (arXiv 2010.11929), with torchvision's tensor names."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.models.shapes import Depth, Dropout, InputShape, Size


class MlpBlock(nn.Sequential):
    """Linear, GELU, dropout, linear, dropout.

    Checkpoints that torchvision wrote before its 0.13 call the linear layers
    ``linear_1`` and ``linear_2``; they load too.
    """

    def __init__(self, dim: int, mlp_dim: int, dropout: float) -> None:
        first, second = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
        for linear in (first, second):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        super().__init__(
            first, nn.GELU(), nn.Dropout(dropout), second, nn.Dropout(dropout)
        )
        self.register_load_state_dict_pre_hook(_rename_old_linears)


class EncoderBlock(nn.Module):
    """Self-attention, then an MLP, each after a layer norm (equations 2 and 3)."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MlpBlock(dim, mlp_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (batch, tokens, dim) of tokens of the same shape."""
        y = self.ln_1(x)
        x = x + self.dropout(self.self_attention(y, y, y, need_weights=False)[0])
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Learned positions, encoder blocks, a last layer norm."""

    def __init__(
        self,
        tokens: int,
        depth: int,
        dim: int,
        heads: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, dim).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            OrderedDict(
                (f"encoder_layer_{i}", EncoderBlock(dim, heads, mlp_dim, dropout))
                for i in range(depth)
            )
        )
        self.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (batch, tokens, dim) of tokens of the same shape."""
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class VisionTransformer(nn.Module):
    """Patches and a class token through the encoder; a linear head on that token."""

    def __init__(
        self, patch: int, channels: int, encoder: Encoder, classes: int
    ) -> None:
        super().__init__()
        dim = encoder.pos_embedding.shape[2]
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.conv_proj = nn.Conv2d(channels, dim, patch, stride=patch)
        self.encoder = encoder
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(dim, classes)))
        std = 1 / math.sqrt(channels * patch * patch)
        nn.init.trunc_normal_(self.conv_proj.weight, std=std)
        for zero in (self.conv_proj.bias, *self.heads.parameters()):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.conv_proj(images)  # (batch, dim, height / patch, width / patch)
        x = x.flatten(2).transpose(1, 2)  # (batch, patches, dim)
        token = self.class_token.expand(x.shape[0], -1, -1)  # (batch, 1, dim)
        x = self.encoder(torch.cat([token, x], dim=1))  # (batch, 1 + patches, dim)
        return self.heads(x[:, 0])  # (batch, classes)


def vit(
    classes: int,
    input_shape: InputShape,
    *,
    patch: Size,
    dim: Size,
    depth: Depth,
    heads: Size,
    mlp_dim: Size,
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Vision Transformer (arXiv 2010.11929, section 3.1), torchvision's tensor names.

    The head starts at zero, as in torchvision: all logits are equal at first.

    Args:
        classes: number of logits.
        input_shape: channels, height, width.
        patch: side of the square patches, in pixels; must divide height and width.
        dim: width of the tokens.
        depth: number of encoder blocks.
        heads: attention heads; must divide `dim`.
        mlp_dim: hidden width of the blocks' MLPs.
        dropout: probability, after the positions, the attention and in the MLPs.

    Raises:
        InputError: `patch` does not divide the image, or `heads` not `dim`.
    """
    channels, height, width = input_shape
    if height % patch or width % patch:
        raise InputError(
            f"a ViT's patch must divide the image, but patch={patch} does not divide "
            f"{height}x{width} pixels; set patch to a common divisor"
        )
    if dim % heads:
        raise InputError(
            f"a ViT's heads must divide its dim, but heads={heads} does not divide "
            f"dim={dim}; change one of them"
        )
    tokens = 1 + (height // patch) * (width // patch)
    encoder = Encoder(tokens, depth, dim, heads, mlp_dim, dropout)
    return VisionTransformer(patch, channels, encoder, classes)


def _rename_old_linears(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    for old, new in (("linear_1", "0"), ("linear_2", "3")):
        for part in ("weight", "bias"):
            if f"{prefix}{old}.{part}" in state:
                state[f"{prefix}{new}.{part}"] = state.pop(f"{prefix}{old}.{part}")
