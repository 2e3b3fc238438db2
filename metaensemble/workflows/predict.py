"""A student predicted for teachers that the predictor never saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from metaensemble.core.errors import InputError
from metaensemble.data import ImageData, is_embedded
from metaensemble.engine import evaluate
from metaensemble.methods import Refinement, WeightFormerMethod, reading_for
from metaensemble.metrics import kl_to
from metaensemble.teachers import Average, Ensemble, load_ensemble
from metaensemble.weightformer import Predictor
from metaensemble.workflows.conditioning import disjoint
from metaensemble.workflows.options import CardOptions, DataOptions, RunOptions, Session
from metaensemble.workflows.predicting import (
    predicted_student,
    refuse_unfit,
    sources_of,
)
from metaensemble.workflows.students import Student

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What --step auto tries."""


class PredictOptions(CardOptions, RunOptions):
    """Write a student in one forward pass."""

    members: tuple[Path, ...]
    """Member files, or folders of them."""
    predictor: Path
    """What metaensemble learn-weightformer wrote."""
    out: Path
    """The run: a folder that appears whole or not at all."""
    step: Literal["auto"] | float = 1.0
    """How far to go from the reference (0) to the prediction (1); auto: the one of 0,
    .25, .5, .75 and 1 whose student is nearest to the ensemble on validation, by KL."""
    refine: Refinement = "none"
    """Merge the predicted student with its teachers, on images, to match their
    ensemble: learned_soup for teachers of one start, regression_merge for others."""
    others: tuple[Path, ...] = ()
    """Further members of the same kind, at least as many as the teachers: students of
    ensembles of theirs tell whether the predictor listens to its teachers."""
    data: str | None = None
    """Images for batch-norm statistics, tuning and the report; default: those that the
    predictor was trained on, with their split. Without any the student is written
    unmeasured, with the mean of the members' statistics."""
    limit_train: int | None = Field(default=None, ge=1)
    """Use only so many training images of --data."""
    validation_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Part of the training images of --data that is held out for selection."""
    data_seed: int = 0
    """Seed of the shuffle and the split of --data."""
    image_size: int | None = Field(default=None, ge=1)
    """Height and width for image folders."""
    classes: tuple[str, ...] = ()
    """Class names of --data in the order of the predictor's logits; default: the data's
    own."""
    augment: str = "auto"
    """auto, none, flip, crop or crop_flip."""
    stream: bool | None = None
    """Read image folders batch by batch instead of holding them in memory."""
    unlabelled: bool = False
    """Tune also on the images that --limit-train leaves out, unlabelled."""
    tune_epochs: float = Field(default=0, ge=0)
    """Passes of distillation that tune the predicted student."""
    tune_images: int | None = Field(default=None, ge=1)
    """Instead of --tune-epochs: images in all to tune on, repetitions counted, in whole
    batches; the report counts those seen."""
    tune_learning_rate: float = Field(default=0.02, gt=0)
    """Peak rate of the tuning."""
    average: Average = "probabilities"
    """What the ensemble averages."""
    overwrite: bool = False
    """Replace the run if it exists."""

    @field_validator("step")
    @classmethod
    def _between(cls, step: Literal["auto"] | float) -> Literal["auto"] | float:
        if step != "auto" and not 0 <= step <= 1:
            raise ValueError("must be auto or a number from 0 to 1")
        return step

    @model_validator(mode="after")
    def _one_budget(self) -> "PredictOptions":
        if self.tune_images is not None and self.tune_epochs:
            raise ValueError(
                "tuning must have one budget, but --tune-images is "
                f"{self.tune_images} and --tune-epochs is {self.tune_epochs:g}; leave "
                "one out"
            )
        return self

    def refuse_without_images(self) -> None:
        """Refuse what cannot be done without images.

        Raises:
            InputError: such an option is set.
        """
        for wanted, flag, what in (
            (self.tune_epochs, "--tune-epochs", "tuning"),
            (self.tune_images, "--tune-images", "tuning"),
            (self.refine != "none", "--refine", "a refinement"),
            (self.step == "auto", "--step auto", "the choice of a step"),
            (self.others, "--others", "the comparison with other ensembles"),
        ):
            if wanted:
                raise InputError(
                    f"{what} must have images, but there are none; add --data, or "
                    f"leave out {flag}"
                )

    def load_members(
        self, paths: Sequence[Path], predictor: Predictor, data: ImageData | None
    ) -> Ensemble:
        """Return the ensemble of members that fit a predictor.

        Raises:
            InputError: a member is broken or does not fit.
        """
        ensemble = load_ensemble(
            paths,
            architecture=predictor.info.architecture,
            data=data,
            normalization=predictor.info.normalization,
            average=self.average,
            at_least=1,
        )
        refuse_unfit(ensemble, predictor)
        return ensemble

    def load_others(
        self, ensemble: Ensemble, predictor: Predictor, data: ImageData
    ) -> list[Ensemble]:
        """Return the other ensembles to compare with, of as many members each.

        Raises:
            InputError: a member does not fit or is a teacher, too; or they are too few.
        """
        if not self.others:
            return []
        others = self.load_members(self.others, predictor, data)
        teachers = {member.sha256: member for member in ensemble.members}
        for member in others.members:
            if member.sha256 in teachers:
                raise InputError(
                    f"--others must be other members than the teachers, but "
                    f"{member.path} is teacher {teachers[member.sha256].path}; leave "
                    "it out"
                )
        if len(others) < len(ensemble):
            raise InputError(
                f"--others must be at least as many members as the teachers, but are "
                f"{len(others)} to {len(ensemble)}; name more"
            )
        both = Ensemble((*ensemble.members, *others.members))
        both.one_architecture("--others and the teachers must share one architecture")
        return disjoint(others, len(ensemble))

    def passes(self, images: int) -> float:
        """Return the epochs of tuning on so many distillation images."""
        if self.tune_images is None:
            return self.tune_epochs
        return self.tune_images / images

    def data_options(self, predictor: Predictor) -> DataOptions | None:
        """Return the data to use: those named, else the predictor's, if still there."""
        names = DataOptions.model_fields
        if self.data is not None:
            return DataOptions(**{name: getattr(self, name) for name in names})
        remembered = predictor.info.training.get("data_options")
        if not remembered:
            return None
        known = DataOptions.model_validate(remembered)
        there = is_embedded(known.data) or Path(known.data).exists()
        return known if there else None


def best_step(
    session: Session, ensemble: Ensemble, predictor: Predictor
) -> tuple[float, Student, str]:
    """Return the step whose student is nearest to the ensemble on validation.

    Of `STEPS`, by KL(ensemble || student); at a tie the smaller one. As 0 is among
    them, the student is never farther from the ensemble than its reference.

    Returns:
        The step, its student, and a note on the choice.
    """
    split = session.data.validation
    target = ensemble.log_probs(session.cache.ensemble_logits(ensemble, split))
    reading = reading_for(predictor, ensemble, sources_of(session))
    divergences: dict[float, float] = {}
    chosen: Student | None = None
    for step in STEPS:
        student = predicted_student(
            session, ensemble, predictor, step=step, reading=reading
        )
        result = evaluate(
            student.network, student.info.normalization, split, session.device
        )
        divergence = kl_to(target, result.log_probs)
        if chosen is None or divergence < min(divergences.values()):
            chosen = student
        divergences[step] = divergence
    assert chosen is not None
    best = min(divergences, key=lambda step: divergences[step])
    tried = ", ".join(f"{kl:.4f} at {step:g}" for step, kl in divergences.items())
    note = (
        f"step {best:g} from the reference (0) to the prediction (1) was chosen on "
        f"validation, by KL to the ensemble: {tried}"
    )
    return best, chosen, note


def seen_members(ensemble: Ensemble, predictor: Predictor) -> Sequence[str]:
    """Return the names of the members that the predictor was trained on."""
    known = {*predictor.info.trained_on, *predictor.info.training.get("held_out", ())}
    return [member.name for member in ensemble.members if member.sha256 in known]


def predictor_method(predictor: Predictor) -> WeightFormerMethod:
    """Return the hyperparameters with which a predictor was trained."""
    return WeightFormerMethod.model_validate(predictor.info.training["method"])
