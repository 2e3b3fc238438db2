"""Attention transfer."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaensemble.methods.adapters import attention
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
    to_one_size,
)


class AT(FeatureMethod):
    """Zagoruyko & Komodakis 2017, equation 2 with p = 2, as in their code.

    loss_i = sum over stages of mean squared (attention(student) - attention(teacher i))

    A map's attention is its mean square over the channels, flattened to a vector and
    normalised; the mean goes over images and pixels (the paper prints the norm of the
    difference, their code its mean square). Larger maps are averaged to the smaller
    size. Vectors, maps of one pixel, have no attention: their term is 0.
    """

    summary: ClassVar[str] = "look where every teacher looks, at every stage"
    paper: ClassVar[str] = "Zagoruyko, Komodakis 2017 (arXiv 1612.03928)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["at"] = "at"
    """The method's name."""
    weight: float = Field(default=1000.0, ge=0)
    """Of the features' loss; 1000 is RepDistiller's for maps of 32 to 8 pixels a side.
    Smaller maps make the term larger."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of all pairs of layers."""
        del layout  # nothing to adapt
        return AttentionLoss()


class AttentionLoss(FeatureLoss):
    """The squared difference of attention maps, summed over stages."""

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over stages of the mean over images and pixels."""
        del batch
        terms = []
        for own, theirs in zip(student.maps, teacher.maps, strict=True):
            first, second = to_one_size(own, theirs)
            terms.append((attention(first) - attention(second)).square().mean())
        return torch.stack(terms).sum()
