"""Options that several commands share, and the session that they open."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, model_validator

from metaensemble.core.config import Config
from metaensemble.core.distributed import ALONE, World, current_world, local_gpu
from metaensemble.core.errors import InputError
from metaensemble.core.files import output_folder, write_text
from metaensemble.data import (
    ImageData,
    is_embedded,
    load_data,
    parse_normalization,
)
from metaensemble.engine import Checkpoints, RunLog, Saving
from metaensemble.report.card import UNKNOWN, refuse_license
from metaensemble.teachers import Average, Ensemble, OutputCache, load_ensemble

NOT_IDENTITY = {
    "out",
    "overwrite",
    "quiet",
    "cache",
    "checkpoint_seconds",
    "checkpoint_steps",
    "keep_checkpoints",
    "tensorboard",
    "license",
}
"""Options that do not change what a run computes."""
SCRATCH = ".process-"
"""Begins the names of folders whose files nobody keeps."""
BEGINNINGS = {".identity", "config.yaml", "log.jsonl"}
"""What lies in a working folder before any work is done."""


class DataOptions(Config):
    """Which images, and how they are split and augmented."""

    data: str
    """digits, multiview (the synthetic world of Allen-Zhu and Li 2020, with fields:
    multiview,mu=0.2), or the path of: an image folder (train/CLASS/*, test/CLASS/*), a
    folder of parquet files (columns img|image and label), CIFAR's python folder or
    tarball, a folder of MNIST idx files."""
    limit_train: int | None = Field(default=None, ge=1)
    """Use only so many training images, the first of a seeded shuffle."""
    validation_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Part of the training images that is held out for selection."""
    data_seed: int = 0
    """Seed of the shuffle and the split; keep it equal between teach and fuse."""
    image_size: int | None = Field(default=None, ge=1)
    """Height and width for image folders; default: theirs if equal, else 224."""
    classes: tuple[str, ...] = ()
    """Class names in the order of your networks' logits; default: the data's own."""
    augment: str = "auto"
    """auto, none, flip, crop or crop_flip."""
    stream: bool | None = None
    """Read image folders batch by batch instead of holding them in memory; default:
    where they are too large."""

    def absolute(self) -> "DataOptions":
        """Return only these options, the path made absolute."""
        fields = {name: getattr(self, name) for name in DataOptions.model_fields}
        if not is_embedded(self.data):
            fields["data"] = str(Path(self.data).absolute())
        return DataOptions(**fields)

    def load(self, *, unlabelled: bool = False) -> ImageData:
        """Read the data; `unlabelled` also reads what `limit_train` leaves out."""
        return load_data(
            self.data,
            limit_train=self.limit_train,
            validation_fraction=self.validation_fraction,
            seed=self.data_seed,
            image_size=self.image_size,
            classes=self.classes,
            augment=self.augment,
            stream=self.stream,
            unlabelled=unlabelled,
        )


class MemberOptions(Config):
    """What members are, and how their outputs are averaged."""

    architecture: str | None = None
    """Of bare state dicts: built-in name with fields, or package.module:factory. Also
    your consent to import a factory that a member's record names."""
    normalization: str = "data"
    """Input normalisation that bare state dicts were trained with: data (the statistics
    of --data), imagenet, none (pixels in [0, 1]), or means/deviations such as
    0.49,0.48,0.45/0.25,0.24,0.26."""
    average: Average = "probabilities"
    """What the ensemble averages."""

    def load_members(
        self, paths: Sequence[Path], data: ImageData, *, at_least: int = 2
    ) -> Ensemble:
        """Return the ensemble of the members in files and folders."""
        channels = data.input_shape[0]
        return load_ensemble(
            paths,
            architecture=self.architecture,
            data=data,
            normalization=parse_normalization(self.normalization, channels),
            average=self.average,
            at_least=at_least,
        )


class RunOptions(Config):
    """How a command runs."""

    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""
    device: str = "auto"
    """auto (cuda if there is one), cpu, cuda, cuda:1, ..."""
    cache: Path | None = None
    """Folder of cached teacher outputs; default: $METAENSEMBLE_CACHE, else
    ~/.cache/metaensemble."""
    quiet: bool = False
    """Show no progress."""
    checkpoint_seconds: float = Field(default=30.0, gt=0)
    """Time between two checkpoints of a training; more where saving takes long."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, beside the time."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the last checkpoints are kept while a training runs."""
    tensorboard: bool = False
    """Write curves for TensorBoard, too: the folder tensorboard beside log.jsonl."""

    @property
    def saving(self) -> Saving:
        """Return when trainings save themselves."""
        return Saving(
            self.checkpoint_seconds, self.checkpoint_steps, self.keep_checkpoints
        )


class CardOptions(Config):
    """What card.md says that nobody can measure."""

    license: str = UNKNOWN
    """Licence for card.md, as the Hugging Face hub spells it: apache-2.0, mit, other,
    ... It must suit those of members and data, which nobody can tell here."""

    @model_validator(mode="after")
    def _licensed(self) -> "CardOptions":
        refuse_license(self.license)
        return self


@dataclass(frozen=True)
class Session:
    """What every step of a workflow needs: data, cache, log, seed, device, folder."""

    data: ImageData
    cache: OutputCache
    log: RunLog
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None
    """Where checkpoints grow; None for runs that need not be resumed."""
    world: World = ALONE
    """The processes that share every training."""
    saving: Saving = field(default_factory=Saving)
    """When trainings save themselves."""

    def reseeded(self, seed: int) -> "Session":
        """Return this session with another seed."""
        return replace(self, seed=seed)

    def alone(self) -> "Session":
        """Return this session for a training that no other process takes part in."""
        return replace(self, world=ALONE)

    def checkpoints(self, stage: str) -> Checkpoints | None:
        """Return the checkpoints of a stage."""
        if self.folder is None:
            return None
        return Checkpoints(self.folder / f".{stage}.ckpt", self.saving)

    def clear_checkpoints(self) -> None:
        """Remove the checkpoints of finished stages."""
        if self.folder and self.world.first:
            for path in self.folder.glob(".*.ckpt"):
                path.unlink()


@dataclass(frozen=True)
class RunFolder:
    """Where a run grows."""

    shared: Path
    """Of all processes of the run; becomes --out in the end."""
    own: Path
    """Where this process writes the run's files: `shared` for the first process, a
    folder that is thrown away for others, which do the same work after the training."""

    def log(self, options: RunOptions) -> RunLog:
        """Return this process's log; the first one's is shown and stays."""
        world = current_world()
        name = "log.jsonl" if world.first else f"log.{world.rank}.jsonl"
        curves = self.shared / "tensorboard"
        return RunLog(
            self.shared / name,
            quiet=options.quiet or not world.first,
            tensorboard=curves if options.tensorboard and world.first else None,
        )


def open_session(
    options: RunOptions, data: ImageData, folder: Path | None, log: RunLog
) -> Session:
    """Return the session of a command; checkpoints grow in `folder`, if any."""
    device = pick_device(options.device)
    cache = OutputCache(options.cache or default_cache(), device)
    return Session(
        data,
        cache,
        log,
        options.seed,
        device,
        folder,
        current_world(),
        options.saving,
    )


def default_cache() -> Path:
    """Return the folder of cached teacher outputs."""
    given = os.environ.get("METAENSEMBLE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "metaensemble"


def pick_device(name: str) -> torch.device:
    """Return the device that `name` means.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_gpu()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device must be a device of this machine, but {name!r} is not usable "
            "here; choose cpu or auto"
        ) from error
    return device


@contextmanager
def run_folder(
    out: Path,
    config: Config,
    *,
    overwrite: bool,
    extra: dict[str, Any],
    divided: bool = True,
) -> Iterator[RunFolder]:
    """Yield the working folder of a run, its resolved ``config.yaml`` written.

    Input that is refused before any work is done leaves no working folder behind.

    Args:
        out: where the run will appear.
        config: the resolved config; what changes the results identifies the run.
        overwrite: whether `out` may be replaced.
        extra: what else identifies the run, such as the members' hashes.
        divided: whether the result depends on the number of processes.
    """
    world = current_world()
    processes = {"processes": world.size} if divided else {}
    identity = as_yaml({**_identity(config), **extra, **processes})
    with ExitStack() as stack:

        def claim() -> Path:
            claimed = output_folder(
                out, identity, overwrite=overwrite, inputs=_inputs(config)
            )
            folder = stack.enter_context(claimed)
            with _leaving_nothing(folder):
                _tidy(folder)
                text = as_yaml(config.model_dump(mode="json"))
                write_text(folder / "config.yaml", text)
            return folder

        shared = world.agreed(claim)
        own = shared if world.first else shared / f"{SCRATCH}{world.rank}"
        with _leaving_nothing(shared):
            own.mkdir(exist_ok=True)
            yield RunFolder(shared, own)
        world.wait()
        if world.first:
            _tidy(shared)


@contextmanager
def _leaving_nothing(folder: Path) -> Iterator[None]:
    """Remove the folder if the block refuses its input before any work is done."""
    try:
        yield
    except InputError:
        if current_world().first and folder.is_dir():
            if {path.name for path in folder.iterdir()} <= BEGINNINGS:
                shutil.rmtree(folder)
        raise


def _inputs(config: Config) -> list[Path]:
    """Return the files and folders that a command reads, as its options name them."""
    found: list[Path] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if name == "data" and isinstance(value, str) and not is_embedded(value):
            found.append(Path(value))
        elif name not in NOT_IDENTITY:
            found += [path for path in values if isinstance(path, Path)]
    return found


def _tidy(folder: Path) -> None:
    """Remove what processes left that were killed, or that are done."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch)


def as_yaml(value: dict[str, Any]) -> str:
    """Return a mapping as YAML, in its order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _identity(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_IDENTITY)
