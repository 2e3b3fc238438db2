"""A look at a network leaves it as it was."""

import pytest
import torch
from torch import nn

from metaensemble.models.modes import modes_kept, run_on_zeros, zeros_for


@pytest.fixture
def network() -> nn.Sequential:
    """In training, but for its first norm, as one that is frozen."""
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    network[0].eval()
    return network


def modes(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


def test_every_module_has_its_own_mode_again(network: nn.Sequential):
    with modes_kept(network):
        network.eval()
        assert modes(network) == [False] * 4
    assert modes(network) == [True, False, True, True]


def test_modes_come_back_after_an_error(network: nn.Sequential):
    with pytest.raises(RuntimeError, match="should contain 5 elements"):
        run_on_zeros(network.eval().train(), (5, 4, 4))
    assert modes(network) == [True] * 4


def test_a_run_on_zeros_changes_nothing_and_reaches_the_hooks(network: nn.Sequential):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[tuple[torch.Size, bool, bool]] = []

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        seen.append((output.shape, module.training, output.requires_grad))

    network[1].register_forward_hook(note)
    run_on_zeros(network, (2, 4, 5), count=3)
    assert seen == [(torch.Size((3, 3, 4, 5)), False, False)]
    assert modes(network) == [True, False, True, True]
    assert all(
        value.equal(before[name]) for name, value in network.state_dict().items()
    )


def test_zeros_have_the_networks_type(network: nn.Sequential):
    assert zeros_for(network.double(), (2, 4, 4)).dtype == torch.float64
    assert zeros_for(nn.Flatten(), (2, 4, 4), 7).shape == (7, 2, 4, 4)
