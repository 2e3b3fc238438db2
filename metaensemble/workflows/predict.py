"""WeightFormer for teachers never seen: learn a predictor on a zoo, then predict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.data import ImageData, is_embedded
from metaensemble.engine import evaluate
from metaensemble.methods import (
    GeneratorTraining,
    Refinement,
    WeightFormerLearner,
    WeightFormerMethod,
    reading_for,
)
from metaensemble.metrics import kl_to
from metaensemble.models import init_model
from metaensemble.teachers import Average, Ensemble, load_ensemble
from metaensemble.weightformer import Predictor
from metaensemble.workflows.conditioning import disjoint
from metaensemble.workflows.options import (
    CardOptions,
    DataOptions,
    MemberOptions,
    RunOptions,
    Session,
)
from metaensemble.workflows.predicting import (
    predicted_student,
    refuse_unfit,
    sources_of,
)
from metaensemble.workflows.students import Student, train

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What --step auto tries."""


class LearnOptions(GeneratorTraining, RunOptions, MemberOptions, DataOptions):
    """Train a WeightFormer on random subsets of a zoo."""

    zoo: tuple[Path, ...]
    """Folders of members, or member files."""
    out: Path
    """The predictor's file (.safetensors)."""
    teachers: tuple[int, int] = (4, 4)
    """Smallest and largest number of teachers drawn per step."""
    hold_out: int | None = Field(default=None, ge=0)
    """Members kept out of training, for whom validation predicts; default: a fifth of
    the zoo, at least 2; 0 validates on members that training reads."""
    unlabelled: bool = False
    """Train also on the images that --limit-train leaves out, unlabelled."""
    overwrite: bool = False
    """Replace the file if it exists."""

    @property
    def training(self) -> WeightFormerMethod:
        """Return the fields that say how to train."""
        names = GeneratorTraining.model_fields
        fields = {name: getattr(self, name) for name in names}
        return WeightFormerMethod(**fields, tune_epochs=0)


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


@dataclass(frozen=True)
class Learnt:
    """A trained predictor, and what its training took."""

    predictor: Predictor
    student: Student
    """Predicted for the held-out members; carries the costs and the history."""


def learn_predictor(
    session: Session,
    zoo: Ensemble,
    method: WeightFormerMethod,
    *,
    teachers: tuple[int, int],
    hold_out: int | None = None,
    data_options: DataOptions | None = None,
) -> Learnt:
    """Train a generator on random subsets of a zoo.

    Selection is by the student predicted for held-out members, on validation images:
    the generator has seen neither.

    Args:
        session: data, cache, log, seed.
        zoo: the members to learn from.
        method: hyperparameters.
        teachers: smallest and largest size of a subset.
        hold_out: see `LearnOptions`.
        data_options: remembered in the predictor, for `predict` without data.

    Raises:
        InputError: the zoo is smaller than a subset, or its members differ.
    """
    zoo.one_architecture("a zoo's members must share one architecture")
    kept = max(2, len(zoo) // 5) if hold_out is None else hold_out
    low, high = teachers
    read = len(zoo) - kept
    if not 1 <= low <= high <= method.max_teachers:
        raise InputError(
            f"--teachers must be two numbers from 1 to --max-teachers "
            f"({method.max_teachers}), the smaller first, but are {low} and {high}; "
            "change them"
        )
    if read < high:
        raise InputError(
            f"a zoo must have at least as many members as a subset, but of "
            f"{len(zoo)} members {kept} are held out and {high} are to be drawn; "
            "teach more members, or lower --teachers or --hold-out"
        )
    training = zoo.subset(range(read))
    audience = (
        zoo.subset(range(read, len(zoo))) if kept else training.subset(range(high))
    )
    info = zoo.info
    network = init_model(
        info.architecture, len(info.classes), info.input_shape, session.seed
    ).to(session.device)
    before = session.cache.images_asked
    with seeded(session.seed, "learner"):
        learner = WeightFormerLearner(
            method,
            network,
            training,
            audience,
            draw=teachers,
            seed=session.seed,
            sources=sources_of(session),
        )
    student = train(
        session, training, method, learner, info, "weightformer", before, audience
    )
    predictor = learner.predictor()
    record: dict[str, Any] = {
        "method": method.model_dump(mode="json"),
        "seed": session.seed,
        "data": session.data.name,
        "data_options": data_options.absolute().model_dump(mode="json")
        if data_options
        else None,
        "teachers": list(teachers),
        "members": read,
        "held_out": [m.sha256 for m in audience.members] if kept else [],
        "images": student.train_images,
        "teacher_images": student.teacher_images,
        "history": student.history,
    }
    info = predictor.info.model_copy(update={"training": record})
    predictor.network.eval()
    return Learnt(replace(predictor, info=info), student)


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
