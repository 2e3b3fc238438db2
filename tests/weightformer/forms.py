"""The kinds of generators and networks that their properties are tested on."""

from typing import Any

import pytest
import torch

from metaensemble.core.states import State
from metaensemble.weightformer import WeightFormer

SHAPE = (1, 8, 8)
VIT = "vit_small_32x32,depth=2,dim=8,heads=2,mlp_dim=4"
NETWORKS = ("mlp,width=4", "convnet,width=2", VIT, "separable", "lone", "tied")
HEADS: tuple[dict[str, Any], ...] = (
    {"head": "direct"},
    {"head": "residual", "reference": "first"},
    {"head": "residual", "reference": "mean", "centre": True},
    {"head": "mixture"},
)
FORMS: tuple[dict[str, Any], ...] = (
    *HEADS,
    {"head": "residual", "reference": "mean", "readout": "pooled"},
    {"head": "residual", "reference": "first", "attention": "axial"},
    {"head": "mixture", "readout": "pooled", "attention": "axial"},
)
each_network = pytest.mark.parametrize("name", NETWORKS)
each_head = pytest.mark.parametrize(
    "head", HEADS, ids=["direct", "first", "mean", "mixture"]
)
each_form = pytest.mark.parametrize(
    "head",
    FORMS,
    ids=["direct", "first", "mean", "mixture", "pooled", "axial", "axial-pooled"],
)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def close(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5)
        for name in first
    )


def tie_ids(weightformer: WeightFormer, first: int) -> None:
    """Give all teachers from number `first` on one id."""
    with torch.no_grad():
        ids = weightformer.model_id.weight
        ids[first:] = ids[first]
