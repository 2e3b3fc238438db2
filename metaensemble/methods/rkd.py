"""Relational knowledge distillation."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from metaensemble.methods.adapters import TINY, unit
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
)


class RKD(FeatureMethod):
    """Park et al. 2019, on the vectors before the logits.

    loss_i = distance_weight Huber(distances) + angle_weight Huber(angles)

    Distances between two images' vectors, by their mean (equations 5 and 6); angles are
    the cosines at the corner of three images (equations 8 and 9). Means go over all
    pairs and triplets, those of an image with itself among them, as in RepDistiller.
    Angles need batch^3 numbers of memory.
    """

    summary: ClassVar[str] = "match distances and angles between images of a batch"
    paper: ClassVar[str] = "Park, Kim, Lu, Cho 2019 (arXiv 1904.05068)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step; batch^3 memory"

    name: Literal["rkd"] = "rkd"
    """The method's name."""
    weight: float = Field(default=1.0, ge=0)
    """Of the features' loss."""
    distance_weight: float = Field(default=25.0, ge=0)
    """Of the distances in it."""
    angle_weight: float = Field(default=50.0, ge=0)
    """Of the angles in it."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the vectors before the logits."""
        del layout  # relations have the same size whatever the width
        return RelationLoss(self.distance_weight, self.angle_weight)


class RelationLoss(FeatureLoss):
    """The difference of distances and of angles between the images of a batch."""

    def __init__(self, distance_weight: float, angle_weight: float):
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the weighted sum of both."""
        del batch
        own = student.vector[None] - student.vector[:, None]  # (batch, batch, channels)
        theirs = teacher.vector[None] - teacher.vector[:, None]
        loss = own.sum() * 0.0
        if self.distance_weight:
            apart = F.smooth_l1_loss(distances(own), distances(theirs))
            loss = loss + self.distance_weight * apart
        if self.angle_weight:
            turned = F.smooth_l1_loss(angles(own), angles(theirs))
            loss = loss + self.angle_weight * turned
        return loss


def distances(differences: Tensor) -> Tensor:
    """Return pairwise distances divided by the mean of those above 0.

    Args:
        differences: (batch, batch, channels), of vectors.

    Returns:
        (batch, batch); zeros where all vectors are the same.
    """
    squares = differences.square().sum(-1)
    some = squares > TINY**2
    # the root's slope at 0 is infinite
    apart = torch.where(some, torch.where(some, squares, 1.0).sqrt(), 0.0)
    mean = apart.sum() / some.sum().clamp_min(1)
    return apart / torch.where(mean > 0, mean, 1.0)


def angles(differences: Tensor) -> Tensor:
    """Return cosines (batch, batch, batch): [j, i, k] between i - j and k - j."""
    directions = unit(differences)
    return directions @ directions.transpose(1, 2)
