"""Batch t as a pure function of (seed, t): images, labels and teachers' logits."""

from functools import lru_cache

import torch
from torch import Tensor

from metaensemble.core.distributed import ALONE, World
from metaensemble.data import (
    Augmentation,
    Normalization,
    Split,
    batch_indices,
    epoch_of,
)
from metaensemble.engine.log import RunLog
from metaensemble.methods import Batch
from metaensemble.teachers import Ensemble, Member, OutputCache


class TrainingBatches:
    """Augmented, normalised batches with the teachers' cached logits.

    Image i in epoch e is seen in view ``e % views`` (view e if `views` is 0), whose
    augmentation is a function of (seed, view): teachers run once per view, over the
    whole split, when a view is first needed.

    Args:
        split: the images to train on.
        augmentation: of the images.
        normalization: of the student.
        batch_size: images per step.
        seed: of order and augmentation.
        teachers: whose logits come along; None for none.
        cache: of the teachers' logits; needed with teachers.
        views: number of augmented copies of each image; 0 for a new one every epoch.
        live: whether the learner runs the teachers itself: no logits come along then.
        device: where the batches are to be.
    """

    def __init__(
        self,
        split: Split,
        augmentation: Augmentation,
        normalization: Normalization,
        batch_size: int,
        seed: int,
        *,
        teachers: Ensemble | None = None,
        cache: OutputCache | None = None,
        views: int = 0,
        live: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.split = split
        self.augmentation = augmentation
        self.normalization = normalization
        self.batch_size = batch_size
        self.seed = seed
        self.teachers = teachers
        self.cache = cache
        self.live = live
        self.views = 1 if augmentation.is_identity else views
        self.device = torch.device(device)
        self._draws = lru_cache(maxsize=2)(self._draws_of_view)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of full batches in one pass (at least 1)."""
        return max(1, len(self.split) // self.batch_size)

    def view_of(self, step: int) -> int:
        """Return which augmented copy of the images batch `step` shows."""
        epoch = epoch_of(len(self.split), self.batch_size, step)
        return epoch % self.views if self.views else epoch

    def run_teachers(self, steps: int, log: RunLog, world: World = ALONE) -> None:
        """Compute the teachers' logits for all views of the first `steps` batches.

        `__call__` would do it when a view is first needed; ahead of the training it
        has a progress of its own, and the training's time left is to be trusted.

        Args:
            steps: of the training.
            log: shows progress.
            world: the processes that share the work, and the cache's folder.
        """
        if self.teachers is None or self.live:
            return
        views = sorted({self.view_of(step) for step in range(steps)})
        wanted = [(member, view) for view in views for member in self.teachers.members]
        mine = world.share(wanted)
        assert self.cache is not None
        log.begin("teachers' outputs", len(mine))
        before = 0
        for view in views:
            members = [member for member, of in mine if of == view]
            self.cache.compute(
                members,
                self.split,
                self.augmentation,
                self.seed,
                view,
                told=lambda done, before=before: log.advance(before + done),
            )
            before += len(members)
        world.wait()
        for member, view in wanted:  # counts them, and computes what is not shared
            self._logits(member, view)

    def __call__(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Return batch `step`, or one of the nearly equal parts of it."""
        count = len(self.split)
        indices = batch_indices(count, self.batch_size, self.seed, step)
        indices = indices.tensor_split(parts)[part]
        view = self.view_of(step)
        draws = self._draws(view)[indices]
        images = self.split.batch(indices, self.augmentation, draws).to(self.device)
        return Batch(
            step=step,
            inputs=self.normalization(images),
            labels=self.split.labels[indices].to(self.device),
            teacher_logits=self._teacher_logits(view, indices),
            pixels=images,
            indices=indices.to(self.device),
        )

    def _draws_of_view(self, view: int) -> Tensor:
        return self.augmentation.draws(len(self.split), self.seed, view)

    def _teacher_logits(self, view: int, indices: Tensor) -> Tensor | None:
        if self.teachers is None or self.live:
            return None
        rows = [self._logits(member, view)[indices] for member in self.teachers.members]
        return torch.stack(rows).to(self.device)  # (members, batch, classes)

    def _logits(self, member: Member, view: int) -> Tensor:
        assert self.cache is not None
        return self.cache.logits(member, self.split, self.augmentation, self.seed, view)
