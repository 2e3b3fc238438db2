"""Matching by what units compute."""

import pytest
import torch

from metaensemble.alignment import (
    apply_permutations,
    match_activations,
    random_permutations,
)
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator

CONVOLUTIONAL = [
    "mlp,width=8,depth=3,batchnorm=true",
    "convnet,width=4",
    "resnet20,width=0.5,shortcut=B",
    "resnet20,width=0.5",
    "wrn16_1",
    "flattening",
    "bottlenecks",
    "separable",
    "squeezing",
    "dense",
    "grouped",
]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_hidden_permutation_is_recovered_from_activations(case_of, name):
    case = case_of(name)
    state = case.state()
    for key, tensor in state.items():  # no unit so negative that it always is silent
        if tensor.ndim == 1 and key.endswith(("bias", "running_mean")):
            tensor -= 0.5
    hidden = apply_permutations(case.spec, random_permutations(case.spec, 1), state)
    random = generator("batches")
    batches = [torch.randn(16, *case.shape, generator=random) for _ in range(2)]
    matching = match_activations(case.spec, case.network, state, hidden, batches)
    back = apply_permutations(case.spec, matching.permutations, hidden)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert matching.history[0] < matching.objective == matching.history[1]


def test_silent_units_do_not_stop_the_matching(case_of):
    case = case_of("convnet,width=4")
    a, b = case.state(0), case.state(1)
    a["conv1.weight"][:2] = 0
    images = torch.randn(4, *case.shape, generator=generator("silent"))
    matching = match_activations(case.spec, case.network, a, b, [images])
    assert matching.objective >= matching.history[0]


def test_activations_need_images(case_of):
    case = case_of("convnet,width=4")
    with pytest.raises(InputError, match="needs images, at least two of them"):
        match_activations(case.spec, case.network, case.state(), case.state(), [])
