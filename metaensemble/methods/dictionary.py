"""Sparse codes of feature maps by a dictionary, pixel by pixel.

A pixel's feature x (channels,) has the code s = sigmoid(Phi^T x + c), one value in
(0, 1) per codeword, with the dictionary Phi (channels, codewords) and a scalar c. Its k
largest values are kept, and Phi times those is to be x again (Tran et al. 2021).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Dictionary(nn.Module):
    """Codewords for the pixels of maps, and an offset.

    Args:
        channels: of the maps, D.
        codewords: their number.
    """

    def __init__(self, channels: int, codewords: int):
        super().__init__()
        # pixels of unit variance get scores of unit variance
        self.codewords = nn.Parameter(torch.randn(channels, codewords) / channels**0.5)
        self.offset = nn.Parameter(torch.zeros(()))

    def code(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch codewords height width"]:
        """Return the dense code of each pixel, sigmoid(Phi^T x + c)."""
        scores = torch.einsum("dk,bdhw->bkhw", self.codewords, maps)
        return (scores + self.offset).sigmoid()

    def decode(
        self, code: Float[Tensor, "batch codewords height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps that a code stands for, Phi s."""
        return torch.einsum("dk,bkhw->bdhw", self.codewords, code)


def num_codewords(channels: int, ratio: float) -> int:
    """Return how many codewords a dictionary has, `ratio` (m) per channel."""
    return math.ceil(channels * ratio)


def num_kept(channels: int, ratio: float, kept: float) -> int:
    """Return k = max(1, int(D m lambda)), the codewords that each pixel keeps.

    Args:
        channels: D.
        ratio: m, codewords per channel.
        kept: lambda, the part of them that is kept, in (0, 1].
    """
    return max(1, int(channels * ratio * kept))


def sparse(
    code: Float[Tensor, "batch codewords height width"], kept: int
) -> Float[Tensor, "batch codewords height width"]:
    """Return a code with all but the `kept` largest values of each pixel set to 0.

    Values that equal the smallest one kept stay, too.
    """
    smallest = code.topk(kept, dim=1).values[:, -1:]
    return torch.where(code >= smallest, code, 0.0)


def pixel_labels(
    code: Float[Tensor, "batch codewords height width"],
) -> Int[Tensor, "batch height width"]:
    """Return the number of each pixel's largest codeword."""
    return code.argmax(1)


def image_labels(
    code: Float[Tensor, "batch codewords height width"], kept: int
) -> Float[Tensor, "batch codewords"]:
    """Return the mean over an image's pixels of their sparse codes, in [0, 1]."""
    return sparse(code, kept).mean((2, 3))
