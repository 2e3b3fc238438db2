"""Checkpoints: learner, optimizer, step, best state; read safely, written whole."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.files import atomic_path


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


def save_progress(path: Path, progress: Progress) -> None:
    """Write a checkpoint, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(vars(progress), temporary)


def load_progress(path: Path) -> Progress | None:
    """Return the checkpoint in `path`, or None if there is none.

    Raises:
        InputError: the file is broken.
    """
    if not path.exists():
        return None
    try:
        return Progress(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises half a dozen types for broken files
        raise InputError(
            f"a checkpoint must be whole to resume from it, but {path} is not "
            f"({type(error).__name__}); delete it to start this stage again"
        ) from error
