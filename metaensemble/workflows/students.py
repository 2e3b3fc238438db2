"""The steps from an ensemble to a student: merge, train, predict, tune."""

import copy
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation, seeded
from metaensemble.core.states import State
from metaensemble.data import Augmentation, Normalization, Split, concatenate
from metaensemble.engine import (
    TrainingBatches,
    evaluate,
    fit,
    prepare_statistics,
    steps_of,
)
from metaensemble.merging import Bench, BestMember, Judged, Merged, Merger
from metaensemble.methods import (
    KD,
    Learner,
    Reading,
    Refinement,
    Sources,
    TrainedMethod,
    WeightFormerMethod,
    reading_for,
)
from metaensemble.metrics import kl_to
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, MemberInfo, save_member
from metaensemble.teachers.member import load_strictly
from metaensemble.weightformer import Predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.registry import make_method


@dataclass(frozen=True)
class Student:
    """One network made of an ensemble, and what that took."""

    network: nn.Module
    info: MemberInfo
    train_seconds: float = 0.0
    train_images: int = 0
    teacher_images: int = 0
    stage: Literal["predicted", "tuned"] | None = None
    history: list[dict[str, float | int]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def distillation_images(session: Session) -> Split:
    """Return the images to distil on: training ones and, if loaded, unlabelled ones."""
    data = session.data
    if data.unlabelled is None:
        return data.train
    return concatenate([data.train, data.unlabelled])


def merge_student(session: Session, ensemble: Ensemble, method: Merger) -> Student:
    """Return the student that a merger makes."""
    started = time.monotonic()
    merged = method.merge(ensemble, bench_of(session, ensemble, method))
    network = network_of(session, merged, method.stale_statistics)
    seconds = time.monotonic() - started
    return Student(network, merged.info, train_seconds=seconds, notes=merged.notes)


def bench_of(session: Session, ensemble: Ensemble, method: Merger) -> Bench:
    """Return what a merger may look at."""
    split = session.data.validation

    def judge(merged: Merged) -> Judged:
        network = network_of(session, merged, method.stale_statistics)
        result = evaluate(network, merged.info.normalization, split, session.device)
        target = ensemble.log_probs(session.cache.ensemble_logits(ensemble, split))
        return Judged(result.measured, kl_to(target, result.log_probs))

    return Bench(
        session.data,
        judge,
        session.cache,
        session.seed,
        session.device,
        session.log.say,
    )


def distil_student(
    session: Session,
    ensemble: Ensemble,
    method: TrainedMethod,
    architecture: str | None = None,
) -> Student:
    """Return the student that a method trains.

    Args:
        session: data, cache, log, seed.
        ensemble: the teachers.
        method: how.
        architecture: of the student; None for that of the first member, or of the
            merged network that it starts from.

    Raises:
        InputError: the student is to start from a merged network of another
            architecture.
    """
    before = session.cache.images_asked
    merged: Student | None = None
    if isinstance(method, KD) and method.start not in ("best_member", "scratch"):
        merged = _merged_start(session, ensemble, method.start, architecture)
    info = merged.info if merged else ensemble.info
    if architecture is not None and architecture != info.architecture:
        info = info.model_copy(
            update={
                "architecture": architecture,
                "normalization": session.data.normalization,
            }
        )
    network = init_model(
        info.architecture, len(info.classes), info.input_shape, session.seed
    )
    if merged:
        network = merged.network
    elif isinstance(method, KD) and method.start == "best_member":
        network = _best_start(session, ensemble, info, network)
    with seeded(session.seed, "learner"):
        learner = method.learner(network.to(session.device), ensemble)
    student = train(session, ensemble, method, learner, info, method.name_, before)
    if merged is None:
        return student
    return replace(
        student,
        train_seconds=merged.train_seconds + student.train_seconds,
        notes=(*merged.notes, *student.notes),
    )


def train(
    session: Session,
    ensemble: Ensemble,
    method: TrainedMethod,
    learner: Learner,
    info: MemberInfo,
    what: str,
    teacher_images_before: int,
    audience: Ensemble | None = None,
) -> Student:
    """Fit a learner on the distillation images and return what it exports.

    Args:
        session: data, cache, log, seed.
        ensemble: the teachers whose logits the batches bring.
        method: the hyperparameters.
        learner: what to fit.
        info: the record of the network that it exports.
        what: names the stage in log, progress and checkpoint.
        teacher_images_before: the cache's count when the work began.
        audience: the ensemble that validation compares with; default: `ensemble`.
    """
    images = distillation_images(session)
    batches = TrainingBatches(
        images,
        session.data.augmentation if method.augments else Augmentation(),
        info.normalization,
        method.batch_size,
        session.seed,
        teachers=ensemble,
        cache=session.cache,
        views=method.views,
        device=session.device,
    )
    audience = audience or ensemble
    split = session.data.validation
    target = audience.log_probs(session.cache.ensemble_logits(audience, split))

    def validate(learner: Learner) -> dict[str, float]:
        network = exported(session, learner, info.normalization)
        result = evaluate(network, info.normalization, split, session.device)
        return result.figures(target)

    batches.run_teachers(steps_of(method, batches.steps_per_epoch), session.log)
    fitted = fit(
        learner,
        method,
        batches,
        batches.steps_per_epoch,
        seed=session.seed,
        log=session.log,
        what=what,
        validate=validate,
        checkpoint=session.checkpoint(what),
    )
    batch = min(method.batch_size, len(images))
    return Student(
        exported(session, learner, info.normalization),
        info,
        train_seconds=fitted.seconds,
        train_images=fitted.steps * batch,
        teacher_images=session.cache.images_asked - teacher_images_before,
        history=[{**row, "images": row["step"] * batch} for row in fitted.history],
    )


def exported(
    session: Session, learner: Learner, normalization: Normalization
) -> nn.Module:
    """Return the learner's network; stale statistics are re-estimated on a copy."""
    network = learner.export()
    if learner.stale_statistics:
        prepare_statistics(
            network, normalization, session.data.train, 0, session.device
        )
    return network


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
        together = Ensemble((*ensemble.members, joined), ensemble.average, silent)
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


def _best_start(
    session: Session, ensemble: Ensemble, info: MemberInfo, fresh: nn.Module
) -> nn.Module:
    """Return the best member that has the student's architecture, else `fresh`."""
    fitting = [
        m
        for m in ensemble.members
        if m.info.architecture == info.architecture
        and m.info.normalization == info.normalization
    ]
    if not fitting:
        session.log.say("no member has the student's architecture: it starts fresh")
        return fresh
    candidates = Ensemble(tuple(fitting), ensemble.average)
    return merge_student(session, candidates, BestMember()).network


def _merged_start(
    session: Session, ensemble: Ensemble, start: str, architecture: str | None
) -> Student:
    """Return what the merger named `start` makes of the members with its defaults.

    Raises:
        InputError: its architecture is not the one asked for.
    """
    merger = make_method(start)
    assert isinstance(merger, Merger)
    merged = merge_student(session, ensemble, merger)
    if architecture not in (None, merged.info.architecture):
        raise InputError(
            f"a student must have the architecture of the network it starts from, but "
            f"--start {start} makes {merged.info.architecture} of these members and "
            f"--student is {architecture}; choose that one, or --start best_member"
        )
    return merged


def network_of(session: Session, merged: Merged, stale: bool) -> nn.Module:
    """Return a merged network in eval mode, its statistics re-estimated if stale."""
    info = merged.info
    network = init_model(info.architecture, len(info.classes), info.input_shape, 0)
    load_strictly(network, merged.state, "the merged network", info.architecture)
    network = network.to(session.device).eval()
    if stale:
        prepare_statistics(
            network, info.normalization, session.data.train, 0, session.device
        )
    return network


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors on the CPU."""
    return {
        name: tensor.detach().cpu() for name, tensor in network.state_dict().items()
    }
