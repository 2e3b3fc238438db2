"""A member that is right, or wrong, without training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.data import ImageData
from metaensemble.teachers import Member, MemberInfo, save_member


@pytest.fixture(scope="session")
def template_member(digits: ImageData) -> Callable[..., Member]:
    """Write a member that names the class whose mean image is nearest.

    Its logits are multiplied by `scale`: below 0, it names the farthest.
    """

    def make(path: Path, scale: float = 1.0) -> Member:
        images = digits.normalization(digits.train.batch(torch.arange(54))).flatten(1)
        classes = torch.arange(digits.num_classes)
        means = torch.stack([images[digits.train.labels == c].mean(0) for c in classes])
        state = {
            "fc.weight": scale * means / 10,
            "fc.bias": -scale * means.square().sum(1) / 20,
        }
        info = MemberInfo(
            architecture="mlp,depth=0",
            classes=digits.classes,
            input_shape=digits.input_shape,
            normalization=digits.normalization,
        )
        return save_member(path, state, info)

    return make
