import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaensemble.methods import Batch
from metaensemble.methods.features import Features, Layout
from metaensemble.models.taps import Tap


class Fixed(nn.Module):
    """A student whose logits are its parameters, whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


@pytest.fixture
def student() -> Callable[[Tensor], Fixed]:
    """Build a student that gives these logits (batch, classes)."""
    return Fixed


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """Draw normal logits of a shape from a seed."""

    def make(*shape: int, seed: int = 0) -> Tensor:
        return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Make a batch of blank images for labels and teacher logits."""

    def make(labels: list[int], teacher_logits: Tensor | None = None) -> Batch:
        images = torch.zeros(len(labels), 1, 8, 8)
        return Batch(0, images, torch.tensor(labels), teacher_logits)

    return make


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """Read what `golden/make_golden.py` computed with the reference implementations."""
    folder = Path(__file__).parent / "golden"
    return lambda name: json.loads((folder / f"{name}.json").read_text("utf-8"))


@pytest.fixture
def features() -> Callable[..., Features]:
    """Make what a network says of a batch: of maps, or of vectors alone."""

    def make(maps: Sequence[Tensor] = (), vector: Tensor | None = None) -> Features:
        if vector is None:
            vector = maps[-1].mean((2, 3))
        return Features(tuple(maps), vector, torch.zeros(len(vector), 3))

    return make


@pytest.fixture
def layout() -> Callable[..., Layout]:
    """Make the places of a student's and a teacher's features, by their shapes."""

    def make(
        student: Features, teacher: Features, labels: Sequence[int] = ()
    ) -> Layout:
        def taps(of: Features) -> tuple[Tap, ...]:
            return tuple(
                Tap(f"layer{i}", 1, "output", *maps.shape[1:])
                for i, maps in enumerate(of.maps)
            )

        def vector(of: Features) -> Tap:
            return Tap("fc", 1, "input", of.vector.shape[1], 1, 1)

        return Layout(
            taps(student),
            taps(teacher),
            vector(student),
            vector(teacher),
            torch.tensor(labels, dtype=torch.long),
        )

    return make
