"""Instance relationship graphs."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaensemble.methods.adapters import TINY
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
)


class IRG(FeatureMethod):
    """Liu et al. 2019: match the graph of a batch's images, and how layers change it.

    loss_i = sum over stages of e(A) + transformation * sum over neighbours of e(change)

    A (batch, batch) are squared distances between images' maps, averaged over pixels,
    by the largest (equation 2); e(X) = |X_student - X_teacher i|^2 / (2 batch), the
    reduction of the authors' code. The change between two stages is that of the
    vertices, ||f_1(x) - f_2(x)||^2 by the largest (equation 6), where the two have the
    same width in both networks, as first and last block of a stage; else that of the
    edges, (A_1 - A_2)^2 (equation 5), which widths do not matter to. Terms on single
    images (the paper's multi-type knowledge) are those on the logits here.
    Gradients are the loss's own: the authors' Caffe layer takes the largest for a
    constant and passes half of it on.
    """

    summary: ClassVar[str] = "match the graph of distances, and how stages change it"
    paper: ClassVar[str] = "Liu et al. 2019 (CVPR, pages 7096-7104)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["irg"] = "irg"
    """The method's name."""
    weight: float = Field(default=0.005, ge=0)
    """Of the features' loss."""
    transformation: float = Field(default=1.0, ge=0)
    """Of the change between stages in it."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of all pairs of layers."""
        del layout  # relations have the same size whatever the width
        return GraphLoss(self.transformation)


class GraphLoss(FeatureLoss):
    """The difference of graphs and of their transformations."""

    def __init__(self, transformation: float):
        super().__init__()
        self.transformation = transformation

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over stages and over pairs of neighbouring stages."""
        del batch
        own = [maps.mean((2, 3)) for maps in student.maps]  # (batch, channels)
        theirs = [maps.mean((2, 3)) for maps in teacher.maps]
        own_edges, their_edges = [edges(v) for v in own], [edges(v) for v in theirs]
        terms = [
            _error(a, b, len(a)) for a, b in zip(own_edges, their_edges, strict=True)
        ]
        for i in range(1, len(own) if self.transformation else 0):
            if _alike(own[i - 1], own[i]) and _alike(theirs[i - 1], theirs[i]):
                first, second = (
                    moved(*own[i - 1 : i + 1]),
                    moved(*theirs[i - 1 : i + 1]),
                )
            else:
                first = (own_edges[i - 1] - own_edges[i]).square()
                second = (their_edges[i - 1] - their_edges[i]).square()
            terms.append(self.transformation * _error(first, second, len(first)))
        return torch.stack(terms).sum()


def edges(vectors: Tensor) -> Tensor:
    """Return squared distances (batch, batch) divided by the largest.

    Args:
        vectors: (batch, channels).
    """
    centred = vectors - vectors.mean(0)  # so that a common offset costs no digits
    squares = centred.square().sum(1)
    apart = squares[:, None] + squares[None] - 2 * centred @ centred.T
    same = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return _by_largest(apart.masked_fill(same, 0.0).clamp_min(0))


def moved(first: Tensor, second: Tensor) -> Tensor:
    """Return how far each image moves between stages (batch,), by the largest."""
    return _by_largest((first - second).square().sum(1))


def _by_largest(value: Tensor) -> Tensor:
    largest = value.max()
    return value / torch.where(largest > TINY, largest, 1.0)


def _error(first: Tensor, second: Tensor, batch: int) -> Tensor:
    return (first - second).square().sum() / (2 * batch)


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape
