"""The properties of facts/methods.md 9.11 on networks as people have them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metaensemble.alignment import (
    apply_permutations,
    invert,
    match_weights,
    random_permutations,
    spec_for,
)
from metaensemble.core.seeds import generator
from metaensemble.core.states import State
from metaensemble.models import build, init_model

REAL = {
    "resnet20": (3, 32, 32),
    "wrn16_2": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "resnet50": (3, 32, 32),
    "vgg11,head=imagenet": (3, 32, 32),
    "vgg11_bn,head=imagenet": (3, 32, 32),
    "vit_b_32,depth=1": (3, 64, 64),
    "vit_b_32,depth=2": (3, 64, 64),
}
QUICK = ("resnet20", "wrn16_2", "resnet18")


def generic(network: nn.Module, seed: int) -> State:
    """Weights as they are, and noise on what starts at zero or one."""
    random = generator(seed, "generic")
    state: State = {}
    for name, tensor in network.state_dict().items():
        value = tensor.clone()
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=random)
            value += (0.1 if value.ndim < 2 else 1e-2) * noise
        state[name] = value
    return state


def logits(network: nn.Module, state: State, shape: tuple[int, int, int]):
    images = torch.randn(2, *shape, generator=generator("images")).double()
    double = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    with torch.no_grad():
        return functional_call(network.eval(), double, (images,))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in REAL
    ],
)
def test_permuted_back_and_found_again(name):
    shape = REAL[name]
    network = init_model(name, 10, shape, 0)
    spec = spec_for(network, shape)
    assert {why for _, why in spec.frozen} <= {
        "belongs to the images",
        "belongs to the classes",
    } or name in ("resnet20", "vit_b_32,depth=1", "vit_b_32,depth=2")
    state = generic(network, 1)
    permutations = random_permutations(spec, 2)
    permuted = apply_permutations(spec, permutations, state)
    expected, got = (logits(network, s, shape) for s in (state, permuted))
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    back = apply_permutations(spec, invert(permutations), permuted)
    assert all(torch.equal(back[n], state[n]) for n in state)
    matching = match_weights(spec, state, permuted)
    found = apply_permutations(spec, matching.permutations, permuted)
    assert all(torch.equal(found[n], state[n]) for n in state)
    assert matching.objective > matching.history[0]
    assert list(matching.history) == sorted(matching.history)


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_independent_networks_come_closer(name):
    shape = REAL[name]
    a, b = (init_model(name, 10, shape, seed) for seed in (0, 1))
    spec = spec_for(a, shape)
    matching = match_weights(spec, a.state_dict(), b.state_dict())
    assert list(matching.history) == sorted(matching.history)
    assert matching.objective > matching.history[0]
    permuted = apply_permutations(spec, matching.permutations, b.state_dict())
    expected = logits(b, b.state_dict(), shape)
    assert (logits(b, permuted, shape) - expected).abs().max() <= (
        1e-9 * expected.abs().max()
    )


MODULE = """
import torch
from torch import nn

class Owned(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        batch, channels, *_ = images.shape
        if channels != 3:
            raise ValueError("three channels")
        return self.head(torch.relu(self.norm(self.conv(images))).mean((2, 3)))

def owned(classes, width=6):
    return Owned(classes, width)
"""


def test_a_module_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owned_networks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    network = build("owned_networks:owned,width=7", 4, (3, 8, 8))
    spec = spec_for(network, (3, 8, 8))
    (group,) = spec.groups
    assert (group.name, group.size, len(group.axes)) == ("conv", 7, 7)
    state = generic(network, 1)
    hidden = apply_permutations(spec, random_permutations(spec, 2), state)
    matching = match_weights(spec, state, hidden)
    found = apply_permutations(spec, matching.permutations, hidden)
    assert all(torch.equal(found[n], state[n]) for n in state)
