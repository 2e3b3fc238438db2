"""Variational information distillation."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
    to_one_size,
)

START_VARIANCE = 5.0
"""What every channel's variance starts from."""
LEAST_VARIANCE = 1e-5
"""What a channel's variance stays above."""


class VID(FeatureMethod):
    """Ahn et al. 2019: raise a lower bound of the information shared with the teacher.

    loss_i = sum over stages of mean 1/2 [(mu(student) - teacher i)^2 / v + log v]

    mu is three 1x1 convolutions of the student's map, v one variance per channel of the
    teacher's, softplus of a parameter (equations 5 and 6); both are trained. It is the
    negative log-likelihood of a Gaussian up to a constant, so it may be negative.
    Larger maps are averaged to the smaller size; the mean goes over all values, as in
    RepDistiller (mdistiller leaves the variances out of its optimizer).
    """

    summary: ClassVar[str] = "predict the teachers' maps, with a variance per channel"
    paper: ClassVar[str] = "Ahn et al. 2019 (arXiv 1904.05835)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["vid"] = "vid"
    """The method's name."""
    weight: float = Field(default=1.0, ge=0)
    """Of the features' loss."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of all pairs of layers."""
        return InformationLoss(layout)


class InformationLoss(FeatureLoss):
    """The negative log-likelihood of a teacher's maps, summed over stages."""

    def __init__(self, layout: Layout):
        super().__init__()
        pairs = list(zip(layout.student, layout.teacher, strict=True))
        self.means = nn.ModuleList(_mean(s.channels, t.channels) for s, t in pairs)
        start = math.log(math.expm1(START_VARIANCE - LEAST_VARIANCE))
        self.log_scales = nn.ParameterList(
            torch.full((t.channels,), start) for _, t in pairs
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over stages of the mean over all values."""
        del batch
        terms = []
        stages = zip(
            self.means, self.log_scales, student.maps, teacher.maps, strict=True
        )
        for mean, scale, own, theirs in stages:
            first, second = to_one_size(own, theirs)
            variance = (F.softplus(scale) + LEAST_VARIANCE)[:, None, None]
            error = (mean(first) - second).square()
            terms.append(0.5 * (error / variance + variance.log()).mean())
        return torch.stack(terms).sum()


def _mean(student: int, teacher: int) -> nn.Module:
    """Return the network of the Gaussian's mean; arguments are channels."""
    return nn.Sequential(
        nn.Conv2d(student, teacher, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher, teacher, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher, teacher, 1, bias=False),
    )
