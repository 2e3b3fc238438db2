"""The Transformer block that all layers share: pre-norm, full or axial attention."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention and a feed-forward network, each on a normalised residual branch.

    Full attention is the paper's: over the whole sequence, O((N n)^2) time for N
    teachers of n channels. Axial attention is two steps: every channel attends to the
    same channel of the other teachers, then to [cross] and the channels of its own
    teacher, and [cross] to all; O(N n^2 + n N^2). Memory is linear in both, through the
    fused kernel.

    Args:
        width: of the tokens.
        heads: of attention; must divide `width`.
        expansion: feed-forward width over `width`.
        dropout: on all branches.
        axial: the kind of attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        expansion: float,
        dropout: float,
        axial: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.axial = axial
        hidden = int(width * expansion)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        if axial:
            self.norm_teachers = nn.LayerNorm(width)
            self.qkv_teachers = nn.Linear(width, 3 * width)
            self.out_teachers = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "length width"], teachers: int = 1
    ) -> Float[Tensor, "length width"]:
        """Return the sequence after one block.

        Args:
            x: [cross], then the channels of the first teacher, of the second, ...
            teachers: how many there are.
        """
        if self.axial:
            met = x[1:] + self.dropout(self._across_teachers(x[1:], teachers))
            x = torch.cat([x[:1], met])
            attended = self._within_teachers(self.norm_attention(x), teachers)
        else:
            attended = self._attend(self.norm_attention(x))
        x = x + self.dropout(attended)
        hidden = F.gelu(self.up(self.norm_feedforward(x)))
        return x + self.dropout(self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        length, width = x.shape
        qkv = self.qkv(x).view(length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each (1, heads, length, d)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed[0].transpose(0, 1).reshape(length, width))

    def _across_teachers(self, tokens: Tensor, teachers: int) -> Tensor:
        """Attend over the teachers, one short sequence per channel."""
        length, width = tokens.shape
        qkv = self.qkv_teachers(self.norm_teachers(tokens))
        qkv = qkv.view(teachers, -1, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 1, 3, 0, 4)  # each (rows, heads, teachers, d)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_teachers(mixed.permute(2, 0, 1, 3).reshape(length, width))

    def _within_teachers(self, x: Tensor, teachers: int) -> Tensor:
        """Attend over [cross] and the channels of one teacher; [cross] over all."""
        length, width = x.shape
        qkv = self.qkv(x).view(length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)
        cross = F.scaled_dot_product_attention(q[:, :, :1], k, v)[0, :, 0]  # (heads, d)
        tokens = qkv[1:].unflatten(0, (teachers, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = tokens  # each (teachers, heads, rows, d)
        head = qkv[0, :, :, None].expand(3, self.heads, 1, -1)  # of [cross]
        k, v = (
            torch.cat([one.expand(teachers, -1, -1, -1), many], dim=2)
            for one, many in ((head[1], k), (head[2], v))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(length - 1, width)
        return self.out(torch.cat([cross.reshape(1, width), mixed]))
