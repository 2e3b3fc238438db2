"""FitNets: hints in the middle of the network."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.adapters import BatchNorm
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
    to_one_size,
)


class FitNet(FeatureMethod):
    """Romero et al. 2015, trained jointly with the logits, as RepDistiller does.

    loss_i = mean squared error (regressor_i(student's map), teacher i's map)

    The regressor is a 1x1 convolution with batch norm, one per teacher and pair of
    layers. Differences from the paper, which trains the lower half of the student by
    the hint alone first: one joint stage. Maps of different sizes are averaged to the
    smaller; RepDistiller strides the regressor instead (equal sizes: the same).
    """

    summary: ClassVar[str] = "regress a middle map of every teacher from the student's"
    paper: ClassVar[str] = "Romero et al. 2015 (arXiv 1412.6550)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["fitnet"] = "fitnet"
    """The method's name."""
    weight: float = Field(default=100.0, ge=0)
    """Of the features' loss."""
    relu: bool = True
    """Whether the regressor ends in a ReLU; false where teachers' maps may be negative,
    as a transformer's."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the layers named, or of the middle pair."""
        places = self.places(layout, len(layout.student) // 2)
        return HintLoss(layout, places, self.relu)


class HintLoss(FeatureLoss):
    """The squared error of regressed maps, summed over pairs of layers."""

    def __init__(self, layout: Layout, places: Sequence[int], relu: bool = True):
        super().__init__()
        self.places = tuple(places)
        self.regressors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(layout.student[i].channels, layout.teacher[i].channels, 1),
                BatchNorm(layout.teacher[i].channels),
                nn.ReLU() if relu else nn.Identity(),
            )
            for i in self.places
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over layers of the mean squared error."""
        del batch
        terms = []
        for i, regressor in zip(self.places, self.regressors, strict=True):
            own, theirs = to_one_size(student.maps[i], teacher.maps[i])
            terms.append(F.mse_loss(regressor(own), theirs))
        return torch.stack(terms).sum()
