"""Correlation congruence."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.adapters import unit
from metaensemble.methods.contract import Batch
from metaensemble.methods.features import (
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
)


class CC(FeatureMethod):
    """Peng et al. 2019, on the vectors before the logits.

    repdistiller: loss_i = mean over neighbours in the batch of <d_j, d_(j+1)>, where
    d_j = |E_s(student's vector) - E_i(teacher's)| and both linear embeddings are
    trained: what the authors gave RepDistiller. It falls if the embeddings vanish.

    paper: loss_i = mean squared (C(student) - C(teacher i)), where C (batch, batch) is
    the Gaussian kernel exp(-gamma ||x - y||^2) of unit vectors in its Taylor series
    (equations 7 to 9); nothing is embedded.
    """

    summary: ClassVar[str] = "match the correlations between images of a batch"
    paper: ClassVar[str] = "Peng et al. 2019 (arXiv 1904.01802)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; teachers run in every step"

    name: Literal["cc"] = "cc"
    """The method's name."""
    weight: float = Field(default=0.02, ge=0)
    """Of the features' loss; 0.02 is RepDistiller's for its form, the paper's form is
    of another size (about 100)."""
    form: Literal["repdistiller", "paper"] = "repdistiller"
    """Which of the two losses."""
    embedding: int = Field(default=128, ge=1)
    """Width of the embeddings of form repdistiller."""
    order: int = Field(default=2, ge=1, le=10)
    """Highest power in the Taylor series of form paper."""
    gamma: float = Field(default=0.4, gt=0)
    """Of the Gaussian kernel of form paper."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the vectors before the logits."""
        if self.form == "paper":
            return KernelCorrelation(self.order, self.gamma)
        return NeighbourCorrelation(layout, self.embedding)


class NeighbourCorrelation(FeatureLoss):
    """Products of neighbouring images' differences, in the form of RepDistiller."""

    def __init__(self, layout: Layout, width: int):
        super().__init__()
        self.student = nn.Linear(layout.student_vector.channels, width)
        self.teacher = nn.Linear(layout.teacher_vector.channels, width)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the mean over neighbours; 0 for a single image, which has none."""
        del batch
        apart = (self.student(student.vector) - self.teacher(teacher.vector)).abs()
        products = (apart[:-1] * apart[1:]).sum(1)
        return products.sum() / max(1, len(products))


class KernelCorrelation(FeatureLoss):
    """The squared difference of kernel matrices, in the form of the paper."""

    def __init__(self, order: int, gamma: float):
        super().__init__()
        self.order = order
        self.gamma = gamma

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the mean over pairs of images."""
        del batch
        return F.mse_loss(self.kernel(student.vector), self.kernel(teacher.vector))

    def kernel(self, vectors: Tensor) -> Tensor:
        """Return the Taylor series of the kernel (batch, batch) of unit vectors."""
        directions = unit(vectors)
        cosines = directions @ directions.T
        twice = 2 * self.gamma
        powers = [
            math.exp(-twice) * twice**p / math.factorial(p) * cosines**p
            for p in range(self.order + 1)
        ]
        return torch.stack(powers).sum(0)
