from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.engine import Checkpoints, RunLog, TrainingBatches, evaluate, fit
from metaensemble.methods import Learner, TrainedMethod
from metaensemble.teachers import Ensemble, OutputCache


@pytest.fixture
def ensemble(make_member, tmp_path: Path) -> Ensemble:
    """Three members of one start."""
    first = make_member(tmp_path / "members" / "0.safetensors", 0)
    rest = (
        make_member(tmp_path / "members" / f"{seed}.safetensors", seed, start=first)
        for seed in (1, 2)
    )
    return Ensemble((first, *rest))


@pytest.fixture
def batches(digits, tmp_path: Path) -> Callable[..., TrainingBatches]:
    """Make batches of 16 digits; with `teachers` on a cache of the given name."""

    def make(
        teachers: Ensemble | None = None,
        *,
        seed: int = 0,
        views: int = 2,
        cache: str = "cache",
    ) -> TrainingBatches:
        return TrainingBatches(
            digits.train,
            digits.augmentation,
            digits.normalization,
            16,
            seed,
            teachers=teachers,
            cache=OutputCache(tmp_path / cache) if teachers else None,
            views=views,
        )

    return make


@pytest.fixture
def trained(digits, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Fit a learner in silence and return its state dict."""

    def validate(learner: Learner) -> dict[str, float]:
        result = evaluate(learner.export(), digits.normalization, digits.validation)
        return {"objective": result.objective(None)}

    def run(
        learner: Learner,
        method: TrainedMethod,
        batches: TrainingBatches,
        *,
        checkpoint: str | None = None,
        stop_after: int | None = None,
    ) -> dict[str, torch.Tensor]:
        fit(
            learner,
            method,
            batches,
            batches.steps_per_epoch,
            seed=5,
            log=RunLog(quiet=True),
            what="a test",
            validate=validate,
            checkpoints=Checkpoints(tmp_path / checkpoint) if checkpoint else None,
            stop_after=stop_after,
        )
        return {name: value.clone() for name, value in learner.state_dict().items()}

    return run
