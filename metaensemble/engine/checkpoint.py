"""Checkpoints: learner, optimizer, step, best state; read safely, written whole."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.files import atomic_path
from metaensemble.core.guards import refuse_irregular
from metaensemble.core.states import refuse_packed

SHARE = 0.02
"""Most of the time that saving may take: where a save takes long, they are rarer."""
SPEED = 2e8
"""Bytes that a disk is thought to take per second, before the first save tells."""


@dataclass
class Progress:
    """All that a training has become; with the config it determines what follows."""

    step: int = 0
    """Steps done."""
    learner: dict[str, Any] = field(default_factory=dict)
    """The learner's state dict."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """The optimizer's state dict."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The learner's state dict at the best validation; empty before the first."""
    best_step: int = -1
    """Where that was."""
    best_value: float = float("inf")
    """What was measured there; lower is better."""
    history: list[dict[str, float | int]] = field(default_factory=list)
    """One row per validation."""
    seconds: float = 0.0
    """Time spent so far, over all sessions."""
    validation_seconds: float = 0.0
    """Part of it that validations took."""
    threads: int = 0
    """Of the process that wrote it; sums over a batch depend on their number."""


def save_progress(path: Path, progress: Progress) -> None:
    """Write a checkpoint, whole or not at all."""
    # A handle: given a path, torch leaves its file open after a full disk.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save(vars(progress), handle)


def load_progress(path: Path) -> Progress | None:
    """Return the checkpoint in `path`, or None if there is none.

    Raises:
        InputError: the file is broken.
    """
    if not path.exists():
        return None
    refuse_irregular(path, "a checkpoint")
    try:
        refuse_packed(path)
        return _checked(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises half a dozen types for broken files
        raise InputError(
            f"a checkpoint must be whole to resume from it, but {path} is not "
            f"({type(error).__name__}); delete it to start this stage again"
        ) from error


def _checked(values: dict[str, Any]) -> Progress:
    """Return the progress that a file holds.

    Raises:
        TypeError: a field is unknown, or of another type.
    """
    progress, fresh = Progress(**values), vars(Progress())
    for name, value in vars(progress).items():
        kinds = (int, float) if isinstance(fresh[name], float) else type(fresh[name])
        if not isinstance(value, kinds):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return progress


@dataclass(frozen=True)
class Saving:
    """When trainings save themselves, and how many states are kept."""

    seconds: float = 30.0
    """Time between two checkpoints."""
    steps: int | None = None
    """Steps between two checkpoints, beside the time; None for the time alone."""
    keep: int = 2
    """How many of the last checkpoints are kept."""


class Checkpoints:
    """The checkpoints of one training: files beside each other, the step in the name.

    Args:
        path: of the training, such as ``RUN/.kd.ckpt``; the files are
            ``RUN/.kd.00001200.ckpt``.
        saving: when, and how many are kept.
    """

    def __init__(self, path: Path, saving: Saving | None = None) -> None:
        self.path = path
        self.saving = saving or Saving()
        self._last = time.monotonic()
        self._took = 0.0

    @property
    def files(self) -> list[Path]:
        """Return what there is, the newest first."""
        stem, suffix = self.path.stem, self.path.suffix
        found = [
            path
            for path in self.path.parent.glob(f"{stem}.*{suffix}")
            if path.name[len(stem) + 1 : -len(suffix)].isdecimal()
        ]
        return sorted(found, reverse=True)

    def expect(self, learner: nn.Module) -> None:
        """Guess what the first save will take: weights, two momenta, the best state."""
        tensors = [*learner.parameters(), *learner.buffers()]
        self._took = 4 * sum(t.numel() * t.element_size() for t in tensors) / SPEED

    def due(self, step: int) -> bool:
        """Return whether it is time to save, after `step` steps."""
        saving = self.saving
        if saving.steps is not None and step % saving.steps == 0:
            return True
        apart = max(saving.seconds, self._took / SHARE)
        return time.monotonic() - self._last > apart

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint, remove those that are no longer kept, return its file."""
        began = time.monotonic()
        progress.threads = torch.get_num_threads()
        name = f"{self.path.stem}.{progress.step:08d}{self.path.suffix}"
        path = self.path.with_name(name)
        save_progress(path, progress)
        for old in self.files[self.saving.keep :]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._took = self._last - began
        return path

    def load(self) -> tuple[Progress | None, list[str]]:
        """Return the newest whole checkpoint, if any, and what newer ones suffer from.

        Raises:
            InputError: there are some, and all are broken.
        """
        wrong: list[str] = []
        files = self.files
        for path in files:
            try:
                return load_progress(path), wrong
            except InputError as error:
                if path == files[-1]:
                    raise
                wrong.append(str(error))
        return None, wrong

    def clear(self) -> None:
        """Remove all of them: the training is done."""
        for path in self.files:
            path.unlink(missing_ok=True)
