"""Similarity-preserving distillation."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaensemble.methods.adapters import unit
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
)


class SP(FeatureMethod):
    """Tung & Mori 2019: images alike for a teacher are to be alike for the student.

    loss_i = ||G_teacher_i - G_student||_F^2 / batch^2, equation 4

    G = F F^T, its rows normalised, with F the last map of each image as a vector; so
    widths and sizes of maps may differ.
    """

    summary: ClassVar[str] = "match which images of a batch have similar maps"
    paper: ClassVar[str] = "Tung, Mori 2019 (arXiv 1907.09682)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["sp"] = "sp"
    """The method's name."""
    weight: float = Field(default=3000.0, ge=0)
    """Of the features' loss."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the layers named, or of the last pair."""
        return SimilarityLoss(self.places(layout, -1))


class SimilarityLoss(FeatureLoss):
    """The squared difference of similarities, summed over pairs of layers."""

    def __init__(self, places: Sequence[int]):
        super().__init__()
        self.places = tuple(places)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over layers of the mean over pairs of images."""
        del batch
        return torch.stack(
            [
                (similarities(teacher.maps[i]) - similarities(student.maps[i]))
                .square()
                .mean()
                for i in self.places
            ]
        ).sum()


def similarities(maps: Tensor) -> Tensor:
    """Return the inner products (batch, batch) of images' maps, rows of norm 1."""
    flat = maps.flatten(1)
    return unit(flat @ flat.T)
