"""The digits embedded in scikit-learn: 1,797 grey images of 8x8, no file needed."""

from typing import Any

import torch
from jaxtyping import Int64
from sklearn.datasets import load_digits
from torch import Tensor

from metaensemble.core.seeds import permutation
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.raw import ArraySource, RawData

NUM_TEST = 897
SPLIT_SEED = 0
"""The official split of this house; it never follows the user's seed."""


def read_digits() -> RawData:
    """Return the digits: 900 for training, 897 for test, classes in equal shares."""
    bunch: Any = load_digits()
    brightness = torch.as_tensor(bunch["images"])  # (1797, 8, 8), 0..16
    images = (brightness * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.as_tensor(bunch["target"]).long()
    in_test = _stratified(labels, NUM_TEST)
    return RawData(
        name="digits",
        classes=tuple(str(name) for name in bunch["target_names"]),
        train=ArraySource(images[~in_test], labels[~in_test]),
        test=ArraySource(images[in_test], labels[in_test]),
        augmentation=Augmentation(pad=1),
    )


def _stratified(labels: Int64[Tensor, " images"], count: int) -> Tensor:
    """Return a mask of `count` images in which each class keeps its share."""
    rank = torch.zeros(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(len(members), SPLIT_SEED, "digits", label)
        rank[members] = (order.double() + 0.5) / len(members)  # 0..1 in every class
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[rank.argsort(stable=True)[:count]] = True
    return mask
