"""The steps from an ensemble to a WeightFormer's student: predict, refine, tune."""

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation, seeded
from metaensemble.core.states import State
from metaensemble.merging import Merged, Merger
from metaensemble.methods import (
    KD,
    Reading,
    Refinement,
    Sources,
    WeightFormerMethod,
    reading_for,
)
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, save_member
from metaensemble.weightformer import Predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.students import (
    Student,
    distillation_images,
    merge_student,
    network_of,
    state_of,
    train,
)


def weightformer_student(
    session: Session, ensemble: Ensemble, method: WeightFormerMethod
) -> tuple[Student, Student | None]:
    """Train a generator for this fixed set of teachers, as in the paper's main table.

    Returns:
        The predicted student, and the tuned one if `method` tunes.
    """
    ensemble.one_architecture("WeightFormer's teachers must share one architecture")
    info = ensemble.info
    network = init_model(
        info.architecture, len(info.classes), info.input_shape, session.seed
    ).to(session.device)
    before = session.cache.images_asked
    with seeded(session.seed, "learner"):
        learner = method.learner(network, ensemble, sources_of(session))
    student = train(session, ensemble, method, learner, info, "weightformer", before)
    predicted = replace(student, stage="predicted")
    predicted = refined_student(session, ensemble, predicted, method.refine)
    return predicted, tune_student(session, ensemble, predicted, method)


def sources_of(session: Session) -> Sources:
    """Return where a generator gets merges and images from."""

    def merge(ensemble: Ensemble, name: str) -> State:
        merger = make_method(name)
        assert isinstance(merger, Merger)
        return state_of(merge_student(session, ensemble, merger).network)

    def images(ensemble: Ensemble, count: int) -> tuple[Tensor, Tensor]:
        split = distillation_images(session)
        chosen = permutation(len(split), session.seed, "evidence")[:count]
        split = split.subset(chosen)
        inputs = ensemble.info.normalization(split.batch(torch.arange(len(split))))
        logits = session.cache.ensemble_logits(ensemble, split)
        return inputs.to(session.device), ensemble.log_probs(logits).to(session.device)

    return Sources(merge, images)


def predicted_student(
    session: Session,
    ensemble: Ensemble,
    predictor: Predictor,
    *,
    step: float = 1.0,
    reading: Reading | None = None,
) -> Student:
    """Return the student that a predictor writes for these teachers.

    Its batch-norm statistics are re-estimated on the session's images.

    Args:
        session: data, cache, device, seed.
        ensemble: the teachers.
        predictor: the generator.
        step: how far to go from the reference (0) to the prediction (1).
        reading: what the generator reads, if it is known; default: of `ensemble`.
    """
    refuse_unfit(ensemble, predictor)
    read = reading or reading_for(predictor, ensemble, sources_of(session))
    state = predictor.predict(read.states, read.base, read.evidence, step)
    merged = Merged(state, ensemble.info)
    network = network_of(session, merged, stale=True)
    return Student(network, ensemble.info, stage="predicted")


def refined_student(
    session: Session, ensemble: Ensemble, student: Student, refinement: Refinement
) -> Student:
    """Return a predicted student merged with its teachers, to match their ensemble.

    The student lends its weights like a teacher; the outputs to be matched are the
    teachers' alone.

    Args:
        session: data, cache, log, seed.
        ensemble: the teachers.
        student: as predicted.
        refinement: the merger's name; none returns the student.
    """
    if refinement == "none":
        return student
    merger = make_method(refinement)
    assert isinstance(merger, Merger)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "predicted.safetensors"
        joined = save_member(path, state_of(student.network), student.info)
        silent = (len(ensemble),)
        weights = None if ensemble.weights is None else (*ensemble.weights, 0.0)
        members = (*ensemble.members, joined)
        together = Ensemble(members, ensemble.average, silent, weights)
        refined = merge_student(session, together, merger)
    return replace(
        student,
        network=refined.network,
        train_seconds=student.train_seconds + refined.train_seconds,
        notes=(*student.notes, *refined.notes),
    )


def refuse_unfit(ensemble: Ensemble, predictor: Predictor) -> None:
    """Refuse teachers that a predictor was not made for.

    Raises:
        InputError: another architecture, other classes, another input, or too many.
    """
    for member in ensemble.members:
        for what, got, want in (
            ("architecture", member.info.architecture, predictor.info.architecture),
            ("classes", member.info.classes, predictor.info.classes),
            ("input shape", member.info.input_shape, predictor.info.input_shape),
        ):
            if got != want:
                raise InputError(
                    f"teachers must have the predictor's {what}, but {member.path} has "
                    f"{_brief(got)} and the predictor {_brief(want)}; "
                    "choose other members, or train a predictor for these"
                )


def tune_student(
    session: Session, ensemble: Ensemble, student: Student, method: WeightFormerMethod
) -> Student | None:
    """Distil the ensemble into a predicted student, starting from its weights."""
    if not method.tune_epochs:
        return None
    kd = tuning_of(method)
    before = session.cache.images_asked
    learner = kd.learner(copy.deepcopy(student.network), ensemble)
    tuned = train(session, ensemble, kd, learner, student.info, "tuning", before)
    return replace(
        tuned,
        train_seconds=student.train_seconds + tuned.train_seconds,
        train_images=student.train_images + tuned.train_images,
        teacher_images=student.teacher_images + tuned.teacher_images,
        stage="tuned",
        notes=student.notes,
    )


def tuning_of(method: WeightFormerMethod) -> KD:
    """Return the distillation that tunes a predicted student."""
    return KD(
        epochs=method.tune_epochs,
        learning_rate=method.tune_learning_rate,
        views=method.views,
        selection="best",
    )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
