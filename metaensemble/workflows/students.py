"""The steps from an ensemble to a student: merge, train."""

import copy
import itertools
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.data import Augmentation, Normalization, Split, concatenate
from metaensemble.engine import (
    Evaluation,
    PerturbedBatches,
    TrainingBatches,
    evaluate,
    fit,
    prepare_statistics,
    steps_of,
)
from metaensemble.merging import Bench, BestMember, Judged, Merged, Merger
from metaensemble.methods import Distillation, Learner, Stage, Task, TrainedMethod
from metaensemble.metrics import kl_to
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, MemberInfo
from metaensemble.teachers.member import class_order, prepared
from metaensemble.teachers.tensors import load_strictly
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
    temperature: float | None = None
    """By which its logits were divided once it was made; None where they were not."""

    def after(self, earlier: "Student") -> "Student":
        """Return this student with what the stages before it took added."""
        images = earlier.train_images
        later = [{**row, "images": images + row["images"]} for row in self.history]
        return replace(
            self,
            train_seconds=earlier.train_seconds + self.train_seconds,
            train_images=images + self.train_images,
            teacher_images=earlier.teacher_images + self.teacher_images,
            history=[*earlier.history, *later],
            notes=(*earlier.notes, *self.notes),
        )


def evaluate_on(
    session: Session, network: nn.Module, info: MemberInfo, split: Split
) -> Evaluation:
    """Return the evaluation of a network on a split of the session's data.

    Its classes are matched to the data's by name, and images are resized for it.
    """
    wanted, whose = session.data.classes, session.data.name
    order = class_order(info.classes, wanted, "the student", whose)
    prepare = partial(prepared, info=info)
    return evaluate(network, prepare, split, session.device, order)


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
        result = evaluate_on(session, network, merged.info, split)
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
    merged: Student | None = None,
) -> Student:
    """Return the student that a method trains, in all its stages.

    Args:
        session: data, cache, log, seed.
        ensemble: the teachers.
        method: how.
        architecture: of the student; None for that of the first member, or of the
            merged network that it starts from.
        merged: what the method's start makes of these members, where that was made
            already; its network is copied.

    Raises:
        InputError: the student is to start from a merged network of another
            architecture.
    """
    before = session.cache.images_asked
    start = method.start if isinstance(method, Distillation) else "scratch"
    if start in ("best_member", "scratch"):
        merged = None
    elif merged is not None:
        merged = replace(merged, network=copy.deepcopy(merged.network))
    else:
        merged = _merged_start(session, ensemble, start, architecture)
    info = merged.info if merged else student_info(session, ensemble, architecture)
    network = init_model(
        info.architecture, len(info.classes), info.input_shape, session.seed
    )
    if merged:
        network = merged.network
    elif start == "best_member":
        network = _best_start(session, ensemble, info, network)
    labels = distillation_images(session).labels
    task = Task(info.input_shape, labels, info.architecture, len(info.classes))
    stages = method.stages(network.to(session.device), ensemble, task)
    student = merged or Student(network, info)
    for count in itertools.count():
        with seeded(session.seed, "learner", *([count] if count else [])):
            stage = next(stages, None)
        if stage is None:
            break
        trained = train_stage(session, ensemble, stage, student.info, before)
        student = trained.after(student)
        before = session.cache.images_asked
    return student


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
    stage = Stage(what, method, learner)
    return train_stage(session, ensemble, stage, info, teacher_images_before, audience)


def train_stage(
    session: Session,
    ensemble: Ensemble,
    stage: Stage,
    info: MemberInfo,
    teacher_images_before: int,
    audience: Ensemble | None = None,
) -> Student:
    """Fit a stage's learner on the distillation images and return what it exports.

    A preparation's student is the untrained one, since there is none yet.
    """
    method, learner, what = stage.settings, stage.learner, stage.name
    images = distillation_images(session)
    moves = method.perturbation != "none" and not learner.preparation
    batches = TrainingBatches(
        images,
        session.data.augmentation if method.augments else Augmentation(),
        info.normalization,
        method.batch_size,
        session.seed,
        teachers=ensemble,
        cache=session.cache,
        views=method.views,
        live=method.live or moves,
        device=session.device,
    )
    source, passes = batches, method.teachers_run(len(ensemble))
    if moves:
        source = PerturbedBatches(
            batches, method.perturbation, learner, ensemble, logits=not method.live
        )
        passes += source.teacher_passes
    audience = audience or ensemble
    split = session.data.validation
    target = audience.log_probs(session.cache.ensemble_logits(audience, split))

    def validate(learner: Learner) -> dict[str, float]:
        network = exported(session, learner, info.normalization)
        result = evaluate_on(session, network, info, split)
        return result.figures(target)

    steps = steps_of(method, batches.steps_per_epoch)
    batches.run_teachers(steps, session.log, session.world)
    fitted = fit(
        learner,
        method,
        source,
        batches.steps_per_epoch,
        seed=session.seed,
        log=session.log,
        what=what,
        validate=None if learner.preparation else validate,
        checkpoints=session.checkpoints(what),
        world=session.world,
    )
    batch = min(method.batch_size, len(images))
    seen = fitted.steps * batch
    asked = session.cache.images_asked - teacher_images_before
    if stage.architecture is not None:
        info = info.model_copy(update={"architecture": stage.architecture})
    return Student(
        exported(session, learner, info.normalization),
        info,
        train_seconds=fitted.seconds,
        train_images=seen,
        teacher_images=asked + seen * passes,
        history=[{**row, "images": row["step"] * batch} for row in fitted.history],
        notes=stage.notes,
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


def student_info(
    session: Session, ensemble: Ensemble, architecture: str | None
) -> MemberInfo:
    """Return the record of a student of `architecture`, or of the first member's.

    Its classes and images are the data's.
    """
    data, first = session.data, ensemble.members[0]
    info = first.info
    fits = first.order is None and first.image_size is None
    if fits and architecture in (None, info.architecture):
        return info
    return MemberInfo(
        architecture=architecture or info.architecture,
        classes=data.classes,
        input_shape=data.input_shape,
        normalization=data.normalization,
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
        and m.info.classes == info.classes
        and m.info.input_shape == info.input_shape
    ]
    if not fitting:
        session.log.say("no member has the student's architecture: it starts fresh")
        return fresh
    candidates = ensemble.subset([ensemble.members.index(m) for m in fitting])
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


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors on the CPU."""
    return {
        name: tensor.detach().cpu() for name, tensor in network.state_dict().items()
    }
