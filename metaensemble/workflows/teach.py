"""Training the members of a zoo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator, permutation
from metaensemble.data import UNKNOWN, Split
from metaensemble.engine import TrainingBatches, evaluate, fit
from metaensemble.methods import Learner, Supervised
from metaensemble.models import Architecture, init_model
from metaensemble.teachers import (
    Ensemble,
    Member,
    MemberInfo,
    load_member,
    save_member,
)
from metaensemble.teachers.member import start_of
from metaensemble.teachers.tensors import load_strictly
from metaensemble.workflows.options import DataOptions, RunOptions, Session
from metaensemble.workflows.students import state_of


class TeachOptions(Supervised, RunOptions, DataOptions):
    """Train members: networks that differ in their seed, seed, seed + 1, ..."""

    out: Path
    """The zoo: a folder that gets one member file each."""
    architecture: str
    """A built-in name with fields (resnet20,width=2) or package.module:factory."""
    members: int = Field(default=4, ge=1)
    """How many."""
    start: Path | None = None
    """A member file whose weights all members start from; default: each its own."""
    subset: float = Field(default=1.0, gt=0, le=1)
    """Part of the training images that each member sees, its own choice each."""
    classes_each: int | None = Field(default=None, ge=1)
    """Of how many classes each member sees images, its own choice each; default: all.
    The members then differ in what they know."""
    label_noise: float = Field(default=0.0, ge=0, lt=1)
    """Part of its images for which each member sees a label drawn uniformly among all
    classes; it may be the true one."""
    overwrite: bool = False
    """Replace the zoo if it exists."""

    @property
    def knowledge(self) -> "Knowledge":
        """Return the fields that say what each member sees."""
        return Knowledge(self.subset, self.classes_each, self.label_noise)

    @property
    def supervised(self) -> Supervised:
        """Return the fields that say how to train."""
        names = Supervised.model_fields
        return Supervised(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Knowledge:
    """What one member sees of the training images; chosen by its seed."""

    subset: float = 1.0
    """Part of the images."""
    classes_each: int | None = None
    """Number of classes; None for all."""
    label_noise: float = 0.0
    """Part of the labelled images whose label is drawn uniformly among all classes,
    the true one included: so of c classes, about label_noise * (c - 1) / c of the
    labels are wrong. `UNKNOWN` labels stay."""

    def of(self, train: Split, classes: int, seed: int) -> Split:
        """Return the images of the member with this seed.

        Raises:
            InputError: more classes than there are, or no image is left.
        """
        if self.classes_each is not None:
            train = self._of_some_classes(train, classes, self.classes_each, seed)
        if self.subset < 1:
            count = max(1, round(self.subset * len(train)))
            train = train.subset(permutation(len(train), seed, "subset")[:count])
        if self.label_noise:
            train = self._with_noise(train, classes, self.label_noise, seed)
        return train

    @staticmethod
    def _of_some_classes(train: Split, classes: int, count: int, seed: int) -> Split:
        if count > classes:
            raise InputError(
                f"--classes-each must be at most the number of classes, {classes}, but "
                f"is {count}; lower it"
            )
        chosen = permutation(classes, seed, "classes")[:count]
        kept = torch.isin(train.labels, chosen).nonzero().flatten()
        if not len(kept):
            raise InputError(
                f"a member must see at least one image, but the {count} classes that "
                f"seed {seed} draws have none; raise --classes-each"
            )
        return train.subset(kept)

    @staticmethod
    def _with_noise(train: Split, classes: int, share: float, seed: int) -> Split:
        known = (train.labels != UNKNOWN).nonzero().flatten()
        count = round(share * len(known))
        noisy = known[permutation(len(known), seed, "noise")[:count]]
        labels = train.labels.clone()
        random = generator(seed, "noisy labels")
        labels[noisy] = torch.randint(classes, (count,), generator=random)
        return train.with_labels(labels)


EVERYTHING = Knowledge()
"""All images, with their labels."""


def teach_members(
    session: Session,
    folder: Path,
    *,
    architecture: str,
    members: int,
    method: Supervised,
    start: Member | None = None,
    knowledge: Knowledge = EVERYTHING,
    command: str = "teach",
) -> list[Member]:
    """Train `members` networks with seeds seed, seed + 1, ... into `folder`.

    Finished members that are found in the folder are kept. Several processes share the
    members out, so that each is the same as with one process.

    Raises:
        InputError: the start is of another architecture, or a member would see more
            classes than there are or no image.
    """
    architecture = str(Architecture.parse(architecture))
    paths = {
        seed: folder / f"member-{seed:04d}.safetensors"
        for seed in range(session.seed, session.seed + members)
    }
    for seed in session.world.share(list(paths)):
        path = paths[seed]
        if not path.exists():
            teach_member(
                session.reseeded(seed).alone(),
                path,
                architecture=architecture,
                method=method,
                start=start,
                knowledge=knowledge,
                command=command,
            )
        if checkpoints := session.checkpoints(path.stem):
            checkpoints.clear()
    session.world.wait()
    return [
        load_member(path, architecture=architecture, data=session.data)
        for path in paths.values()
    ]


def teach_member(
    session: Session,
    path: Path,
    *,
    architecture: str,
    method: Supervised,
    start: Member | None = None,
    knowledge: Knowledge = EVERYTHING,
    command: str = "teach",
) -> Member:
    """Train one network with the session's seed and write it to `path`."""
    data, seed = session.data, session.seed
    network = _initial(session, architecture, start)
    started_from = start_of(network)
    network = network.to(session.device)
    images = knowledge.of(data.train, data.num_classes, seed)
    batches = TrainingBatches(
        images,
        data.augmentation,
        data.normalization,
        method.batch_size,
        seed,
        device=session.device,
    )

    def validate(learner: Learner) -> dict[str, float]:
        result = evaluate(
            learner.export(), data.normalization, data.validation, session.device
        )
        measured = result.measured
        figures = {"accuracy": measured.accuracy, "nll": measured.nll}
        return {**figures, "objective": result.objective(None)}

    learner = method.learner(network, None)
    fitted = fit(
        learner,
        method,
        batches,
        batches.steps_per_epoch,
        seed=seed,
        log=session.log,
        what=path.stem,
        validate=validate,
        checkpoints=session.checkpoints(path.stem),
        world=session.world,
    )
    result = evaluate(network, data.normalization, data.validation, session.device)
    training: dict[str, Any] = {
        "command": command,
        "seed": seed,
        "data": data.name,
        "images": len(images),
        "subset": knowledge.subset,
        "classes_each": knowledge.classes_each,
        "label_noise": knowledge.label_noise,
        "steps": fitted.steps,
        "start": start.sha256 if start else None,
        "method": method.model_dump(mode="json"),
    }
    info = MemberInfo(
        architecture=architecture,
        classes=data.classes,
        input_shape=data.input_shape,
        normalization=data.normalization,
        start=started_from,
        training=training,
        metrics={"validation": result.measured.model_dump(mode="json")},
    )
    member = save_member(path, state_of(network), info)
    session.log.event("member", path=path.name, **info.metrics)
    return member


def _initial(session: Session, architecture: str, start: Member | None) -> nn.Module:
    data = session.data
    network = init_model(architecture, data.num_classes, data.input_shape, session.seed)
    if start is None:
        return network
    if start.info.architecture != architecture:
        raise InputError(
            f"--start must be of the architecture to teach, but {start.path} is "
            f"{start.info.architecture} and --architecture {architecture}; "
            "give one of that architecture"
        )
    Ensemble((start,)).refuse_matched("--start must be of the architecture to teach")
    load_strictly(network, start.state(), str(start.path), architecture)
    return network
