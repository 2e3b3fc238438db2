"""Factor transfer."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.adapters import BatchNorm, attention, unit
from metaensemble.methods.contract import Batch, Learner, Stage, Task
from metaensemble.methods.features import (
    FeatureLearner,
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
    teacher_features,
    to_one_size,
)
from metaensemble.teachers import Ensemble

Form = Literal["paper", "repdistiller"]


class FT(FeatureMethod):
    """Kim, Park & Kwak 2018: match factors of the last maps, not the maps.

    loss_i = mean |factor(translator_i(student)) - factor(paraphraser_i(teacher i))|

    First every teacher's paraphraser, a convolutional auto-encoder with a share `rate`
    of the teacher's channels, learns to reconstruct that teacher's map (equation 1);
    then it is frozen, and a translator per teacher learns along with the student.

    paper: a factor is the whole map as a unit vector (equation 2 with p = 1, as in
    the official code). repdistiller: it is the unit vector of the mean squares over
    channels, one number per pixel, and translators have batch norm. Maps of different
    sizes are averaged to the smaller. One optimizer and rate serve student and
    translator; the paper has two of the same settings.
    """

    summary: ClassVar[str] = "match the teachers' maps as auto-encoders paraphrase them"
    paper: ClassVar[str] = "Kim, Park, Kwak 2018 (arXiv 1802.04977)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = (
        "two trainings, the first of small auto-encoders; teachers run in every step"
    )

    name: Literal["ft"] = "ft"
    """The method's name."""
    weight: float = Field(default=500.0, ge=0)
    """Of the features' loss; 500 is the paper's, 200 RepDistiller's for its form."""
    form: Form = "paper"
    """What a factor is."""
    rate: float = Field(default=0.5, gt=0, le=1)
    """Channels of the factors, as a share of the teacher's."""
    paraphraser_epochs: float = Field(default=2.5, gt=0)
    """Passes over the images that train the paraphrasers; RepDistiller takes an eighth
    of the student's epochs."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the loss of the layers named, or of the last pair."""
        return FactorLoss(layout, self.places(layout, -1), self.rate, self.form)

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the paraphrasers' training, then the student's."""
        learner = FeatureLearner(self, student, teachers, task)
        settings = self.model_copy(update={"epochs": self.paraphraser_epochs})
        preparation = ParaphraserLearner(learner)
        yield Stage(f"{self.name_}_paraphrasers", settings, preparation)
        preparation.requires_grad_(False)
        yield Stage(self.name_, self, learner)


class FactorLoss(FeatureLoss):
    """The difference of factors, summed over pairs of layers."""

    def __init__(
        self, layout: Layout, places: Sequence[int], rate: float, form: Form = "paper"
    ):
        super().__init__()
        self.places = tuple(places)
        self.form: Form = form
        self.paraphrasers = nn.ModuleList()
        self.translators = nn.ModuleList()
        for i in self.places:
            taught, own = layout.teacher[i].channels, layout.student[i].channels
            factors = max(1, round(rate * taught))
            self.paraphrasers.append(Paraphraser(taught, factors))
            norm = form == "repdistiller"
            self.translators.append(_encoder(own, factors, norm))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the sum over layers of the mean over all numbers of the factors."""
        del batch
        terms = []
        pairs = zip(self.places, self.paraphrasers, self.translators, strict=True)
        for i, paraphraser, translator in pairs:
            assert isinstance(paraphraser, Paraphraser)
            with torch.no_grad():
                theirs = paraphraser.encoder(teacher.maps[i])
            first, second = to_one_size(translator(student.maps[i]), theirs)
            terms.append(F.l1_loss(self.factor(first), self.factor(second)))
        return torch.stack(terms).sum()

    def factor(self, maps: Tensor) -> Tensor:
        """Return the factors (batch, numbers) of encoded maps, of norm 1."""
        return unit(maps.flatten(1)) if self.form == "paper" else attention(maps)

    def reconstruction(self, teacher: Features) -> Tensor:
        """Return the paraphrasers' mean squared error, summed over layers."""
        return torch.stack(
            [
                F.mse_loss(paraphraser(teacher.maps[i]), teacher.maps[i])
                for i, paraphraser in zip(self.places, self.paraphrasers, strict=True)
            ]
        ).sum()


class Paraphraser(nn.Module):
    """A convolutional auto-encoder of maps: three layers in, three out."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = _encoder(channels, factors)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(factors, factors, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(factors, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the reconstructed maps (batch, channels, height, width)."""
        return self.decoder(self.encoder(maps))


class ParaphraserLearner(Learner):
    """Trains all paraphrasers of a learner, whose teachers it runs."""

    preparation = True

    def __init__(self, learner: FeatureLearner):
        super().__init__()
        losses = [loss for loss in learner.losses if isinstance(loss, FactorLoss)]
        self.paraphrasers = nn.ModuleList(loss.paraphrasers for loss in losses)
        # in a tuple: it is neither trained nor saved here
        self._student = (learner.student,)
        self._taught = tuple(
            zip(learner.teachers, learner.layouts, losses, strict=True)
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over teachers of the error of reconstruction."""
        terms = [
            loss.reconstruction(teacher_features(teacher, layout, batch))
            for teacher, layout, loss in self._taught
        ]
        return {"reconstruction": torch.stack(terms).sum()}

    def export(self) -> nn.Module:
        """Return the student, as yet untrained."""
        return self._student[0]


def _encoder(channels: int, factors: int, norm: bool = False) -> nn.Sequential:
    """Return three convolutions from maps to `factors` channels."""
    layers: list[nn.Module] = []
    for before, after in ((channels, channels), (channels, factors), (factors,) * 2):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        layers += [BatchNorm(after)] if norm else []
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)
