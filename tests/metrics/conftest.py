from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from metaensemble.core.seeds import generator


@pytest.fixture
def scored() -> tuple[Tensor, Tensor]:
    """Log-probabilities (400, 7) that are right more often than not, and labels."""
    rng = generator("scored")
    labels = torch.randint(0, 7, (400,), generator=rng)
    logits = torch.randn(400, 7, generator=rng)
    logits[torch.arange(400), labels] += 1.5
    return logits.log_softmax(dim=1), labels


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch jaxtyping's own shape checks off, so that ours are reached."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
