"""The Transformer block that all layers share: pre-norm, full self-attention."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention and a feed-forward network, each on a normalised residual branch.

    Attention is full over the sequence, as in the paper: O(length^2) time, and linear
    memory through the fused kernel.

    Args:
        width: of the tokens.
        heads: of attention; must divide `width`.
        expansion: feed-forward width over `width`.
        dropout: on both branches.
    """

    def __init__(self, width: int, heads: int, expansion: float, dropout: float):
        super().__init__()
        self.heads = heads
        hidden = int(width * expansion)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "length width"]
    ) -> Float[Tensor, "length width"]:
        """Return the sequence after one block."""
        x = x + self.dropout(self._attend(self.norm_attention(x)))
        hidden = F.gelu(self.up(self.norm_feedforward(x)))
        return x + self.dropout(self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        length, width = x.shape
        qkv = self.qkv(x).view(length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each (1, heads, length, d)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed[0].transpose(0, 1).reshape(length, width))
