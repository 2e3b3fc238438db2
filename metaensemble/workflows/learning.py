"""A predictor learnt on a zoo, for teachers that it will never have seen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.methods import (
    GeneratorTraining,
    WeightFormerLearner,
    WeightFormerMethod,
)
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.weightformer import Predictor
from metaensemble.workflows.options import (
    DataOptions,
    MemberOptions,
    RunOptions,
    Session,
)
from metaensemble.workflows.predicting import sources_of
from metaensemble.workflows.students import Student, train


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
