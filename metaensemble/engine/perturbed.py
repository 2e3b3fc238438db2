"""Batches whose images are moved to where networks differ, before each step."""

from dataclasses import replace

import torch
from torch import Tensor

from metaensemble.core.seeds import generator
from metaensemble.engine.batches import TrainingBatches
from metaensemble.methods import Batch, Learner
from metaensemble.methods.contract import Perturbation
from metaensemble.methods.perturbation import Logits, confods, ods, tdiv_sdiv
from metaensemble.teachers import Ensemble, LiveTeacher, LiveTeachers


class PerturbedBatches:
    """`TrainingBatches` with perturbed images, and what the teachers say of them.

    Batch t is a function of the seed, t and the learner's state, so that resuming is
    exact.

    Args:
        batches: what is perturbed; live, since cached logits are of other images.
        kind: how.
        learner: under training; tdiv_sdiv asks for its predictions.
        teachers: all of them; they run on the batches' device.
        logits: whether the teachers' logits for the perturbed images come along.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        kind: Perturbation,
        learner: Learner,
        teachers: Ensemble,
        *,
        logits: bool = True,
    ) -> None:
        self.batches = batches
        self.kind: Perturbation = kind
        self.learner = learner
        self.teachers = LiveTeachers(teachers, batches.device)
        self.logits = logits
        self._alone = False  # whether the student was found to be one network

    @property
    def teacher_passes(self) -> int:
        """Return how many forward passes of teachers an image of a batch takes."""
        pair = 2 if len(self.teachers) > 1 else 0
        moves = {"none": 0, "tdiv_sdiv": pair, "ods": 1, "confods": 1}[self.kind]
        return moves + (len(self.teachers) if self.logits else 0)

    def __call__(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """Return batch `step`, or one of the nearly equal parts of it."""
        batch = self.batches(step, part, parts)
        assert batch.pixels is not None
        pixels = batch.pixels
        if not pixels.is_floating_point():
            pixels = pixels.float() / 255
        of_part = [part] if parts > 1 else []
        random = generator(self.batches.seed, "perturbation", step, *of_part)
        moved = self._moved(pixels, random)
        with torch.no_grad():
            logits = self.teachers.logits(moved) if self.logits else None
        return replace(
            batch,
            inputs=self.batches.normalization(moved),
            teacher_logits=logits,
            pixels=moved,
            clean=batch.inputs,
        )

    def _moved(self, pixels: Tensor, random: torch.Generator) -> Tensor:
        teachers = [_logits_of(teacher) for teacher in self.teachers]
        if self.kind == "ods":
            return ods(pixels, teachers, random)
        if self.kind == "confods":
            return confods(pixels, teachers, random)
        if self.kind == "none":
            return pixels
        mode = self.learner.training
        self.learner.eval()
        try:
            student = None if self._alone else self._predictions
            return tdiv_sdiv(pixels, teachers, student, random)
        finally:
            self.learner.train(mode)

    def _predictions(self, pixels: Tensor) -> Tensor:
        """Return the logits (networks, batch, classes) of the student's networks."""
        logits = self.learner.predictions(self.batches.normalization(pixels))
        self._alone = len(logits) == 1  # need not be asked again
        return logits


def _logits_of(teacher: LiveTeacher) -> Logits:
    return lambda pixels: teacher(pixels)[0]
