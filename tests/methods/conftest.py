from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metaensemble.methods import Batch


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
