"""The contract of merging: state dicts in, state dict out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metaensemble.core.method import Method
from metaensemble.core.seeds import permutation
from metaensemble.core.states import State
from metaensemble.data import ImageData, Normalization, concatenate
from metaensemble.metrics import Measured
from metaensemble.teachers import Ensemble, MemberInfo, OutputCache


@dataclass(frozen=True)
class Merged:
    """A merged network: its tensors, and the record of the architecture it has."""

    state: State
    info: MemberInfo
    notes: tuple[str, ...] = ()
    """What the report should say about how it came to be."""


@dataclass(frozen=True)
class Judged:
    """A candidate on the validation split, its statistics re-estimated if stale."""

    measured: Measured
    """Against the labels."""
    kl: float
    """KL(ensemble || candidate): needs no labels."""


def _ignore(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Bench:
    """What a merger may look at beside its members: images, and a judge.

    `batches` gives training images, with the unlabelled ones if the user has such, and
    no labels; labels are only those of `judge` and ``data.validation``. Test images are
    out of bounds.
    """

    data: ImageData
    judge: Callable[[Merged], Judged]
    """Figures of a candidate on validation."""
    cache: OutputCache
    """The members' logits."""
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    say: Callable[[str], None] = _ignore
    """Shows one line of progress to the user."""

    def batches(
        self,
        normalization: Normalization,
        count: int,
        *,
        augmented: bool = False,
        batch: int = 250,
    ) -> Iterator[Tensor]:
        """Yield normalised training images on the device, the same for one seed.

        Args:
            normalization: of the networks that take them.
            count: how many images; all there are if fewer.
            augmented: whether they are augmented as in training, each once.
            batch: images per batch.
        """
        split = self.data.train
        if self.data.unlabelled is not None:
            split = concatenate([split, self.data.unlabelled])
        chosen = permutation(len(split), self.seed, "bench")[:count]
        augmentation = self.data.augmentation if augmented else None
        draws = None
        if augmentation is not None and not augmentation.is_identity:
            draws = augmentation.draws(len(split), self.seed, 0)
        for indices in chosen.split(batch):
            own = None if draws is None else draws[indices]
            images = split.batch(indices, augmentation, own)
            yield normalization(images.to(self.device))


class Merger(Method, ABC):
    """A method that does not train."""

    cost: ClassVar[str] = "no training"
    stale_statistics: ClassVar[bool] = True
    """Whether batch-norm statistics must be re-estimated after `merge`."""

    @abstractmethod
    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return one network made of the members.

        Args:
            members: what to merge.
            bench: images and a judge, for mergers that need them.
        """
