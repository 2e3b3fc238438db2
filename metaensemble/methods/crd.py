"""Contrastive representation distillation."""

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


class CRD(FeatureMethod):
    """Tian, Krishnan & Isola 2020, on the vectors before the logits.

    loss_i = -E log h(pair of one image) - sum over negatives E log(1 - h), twice: the
    student's vector against the memory of teacher i's, and the other way round
    (equations 17 to 19).

    h = u / (u + m / n) with u = exp(<a, b> / tau) / Z, for unit vectors a and b that
    linear layers make of the vectors, one pair of layers per teacher; m negatives of n
    images; Z is fixed by the first batch and saved. Both memories, (images, embedding)
    per teacher, follow by momentum. Negatives are drawn, with replacement, from the
    images whose label differs from the anchor's or is unknown, never the anchor itself
    (RepDistiller's "exact" mode, which draws without replacement where it can); if all
    images have one label, from all others.
    """

    summary: ClassVar[str] = "tell the teacher's vector of an image from other images'"
    paper: ClassVar[str] = "Tian, Krishnan, Isola 2020 (arXiv 1910.10699)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = (
        "one training; teachers run in every step; memory of two vectors per image and "
        "teacher"
    )

    divisible: ClassVar[bool] = False

    name: Literal["crd"] = "crd"
    """The method's name."""
    weight: float = Field(default=0.8, ge=0)
    """Of the features' loss."""
    embedding: int = Field(default=128, ge=1)
    """Width of the vectors that are compared."""
    negatives: int = Field(default=16_384, ge=1)
    """m: other images that each image is compared with; at most all others."""
    tau: float = Field(default=0.07, gt=0)
    """Temperature of the comparison."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Of the memories: the share of the old vector in the new."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the vectors before the logits."""
        return ContrastiveLoss(
            layout, self.embedding, self.negatives, self.tau, self.momentum
        )


class ContrastiveLoss(FeatureLoss):
    """The loss of telling pairs from negatives, with its memories."""

    student_bank: Tensor
    teacher_bank: Tensor
    log_scale: Tensor
    scaled: Tensor

    def __init__(
        self,
        layout: Layout,
        embedding: int,
        negatives: int,
        tau: float,
        momentum: float,
    ):
        super().__init__()
        self.tau = tau
        self.momentum = momentum
        self.images = len(layout.labels)
        self.negatives = Negatives(layout.labels, min(negatives, self.images - 1))
        self.embed_student = nn.Linear(layout.student_vector.channels, embedding)
        self.embed_teacher = nn.Linear(layout.teacher_vector.channels, embedding)
        for name in ("student_bank", "teacher_bank"):
            start = (2 * torch.rand(self.images, embedding) - 1) * (
                3 / embedding
            ) ** 0.5
            self.register_buffer(name, start)
        # log Z of the student's and of the teacher's scores, once they are known
        self.register_buffer("log_scale", torch.zeros(2))
        self.register_buffer("scaled", torch.tensor(False))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the loss in both directions; the memories move in training."""
        assert batch.indices is not None
        others = self.negatives.draw(batch.indices)
        return self.contrast(student.vector, teacher.vector, batch.indices, others)

    def contrast(
        self, student: Tensor, teacher: Tensor, indices: Tensor, others: Tensor
    ) -> Tensor:
        """Return the loss for given negatives.

        Args:
            student: vectors (batch, channels).
            teacher: vectors (batch, channels).
            indices: (batch,), places of the images in the memories.
            others: (batch, negatives), places of the negatives.
        """
        own = unit(self.embed_student(student))
        theirs = unit(self.embed_teacher(teacher))
        places = torch.cat([indices[:, None], others], 1)
        scores = torch.stack(
            [
                self._scores(own, self.teacher_bank, places),
                self._scores(theirs, self.student_bank, places),
            ]
        )  # (2, batch, 1 + negatives)
        scores = scores - self._log_scale(scores)[:, None, None]  # log u
        if self.training:
            self._remember("student_bank", own, indices)
            self._remember("teacher_bank", theirs, indices)
        noise = _log(others.shape[1] / self.images)
        # log h = -softplus(noise - log u), log(1 - h) = -softplus(log u - noise)
        found = F.softplus(noise - scores[..., 0]).mean(1)
        told = F.softplus(scores[..., 1:] - noise).sum(-1).mean(1)
        return (found + told).sum()

    def _scores(self, vectors: Tensor, bank: Tensor, places: Tensor) -> Tensor:
        """Return <a, b> / tau for all places (batch, places)."""
        # a product with the whole memory is faster than gathering its rows
        return (vectors @ bank.T).gather(1, places) / self.tau

    @torch.no_grad()
    def _log_scale(self, scores: Tensor) -> Tensor:
        """Return log Z of both directions, that of the first batch ever after."""
        mean = scores.flatten(1).logsumexp(1) - math.log(scores[0].numel())
        value = torch.where(self.scaled, self.log_scale, mean + math.log(self.images))
        if self.training:
            self.log_scale, self.scaled = value, torch.ones_like(self.scaled)
        return value

    @torch.no_grad()
    def _remember(self, name: str, vectors: Tensor, indices: Tensor) -> None:
        bank: Tensor = getattr(self, name)
        rows = self.momentum * bank[indices] + (1 - self.momentum) * vectors
        # a new tensor: the backward pass still needs the old one
        setattr(self, name, bank.index_copy(0, indices, unit(rows)))


class Negatives(nn.Module):
    """Draws images of other labels, with equal chances.

    Sorted by label, the images of one lie in a row: to leave it out is to draw from
    fewer places and to step over it. An unknown label is one of its own.
    """

    order: Tensor
    place: Tensor
    start: Tensor
    size: Tensor

    def __init__(self, labels: Tensor, count: int):
        super().__init__()
        self.count = count
        images = len(labels)
        unknown = labels.max() + 1 + torch.arange(images)
        kinds = torch.where(labels < 0, unknown, labels)
        if bool((kinds == kinds[0]).all()):
            kinds = torch.arange(images)
        order = kinds.argsort(stable=True)
        _, kinds, sizes = kinds.unique(return_inverse=True, return_counts=True)
        starts = sizes.cumsum(0) - sizes
        # functions of the labels: not part of the state
        for name, value in (
            ("order", order),
            ("start", starts[kinds]),
            ("size", sizes[kinds]),
        ):
            self.register_buffer(name, value, persistent=False)

    def draw(self, indices: Tensor) -> Tensor:
        """Return negatives (batch, count) of the images at `indices` (batch,)."""
        start, size = self.start[indices, None], self.size[indices, None]
        shape = (len(indices), self.count)
        chance = torch.rand(shape, device=indices.device, dtype=torch.float64)
        places = (chance * (len(self.order) - size)).long()
        return self.order[places + size * (places >= start)]


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf
