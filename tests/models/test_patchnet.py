import math

import pytest
import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models import build, init_model
from metaensemble.models.patchnet import SmoothedReLU


def test_the_activation_is_a_power_and_then_linear():
    activation = SmoothedReLU(3, 2.0)  # z^3 / 12 up to 2, then z - 4 / 3
    z = torch.tensor([-5.0, 0.0, 1.0, 2.0, 5.0], requires_grad=True)
    out = activation(z)
    torch.testing.assert_close(out, torch.tensor([0, 0, 1 / 12, 2 / 3, 5 - 4 / 3]))
    out.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor([0, 0, 0.25, 1.0, 1.0]))


def test_logits_by_hand():
    network = build("patchnet,width=2,power=2,rho=1", 2, (1, 2, 3))
    weight = network.get_parameter("conv.weight")
    assert weight.shape == (4, 1, 2, 1)
    with torch.no_grad():
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
        weight.copy_(rows[:, None, :, None])
    # patches are columns: (0.5, 0), (0, 3), (1, -2)
    image = torch.tensor([[0.5, 0.0, 1.0], [0.0, 3.0, -2.0]])[None, None]
    # class 0, neuron 0: 0.5 -> 0.125, 0 -> 0, 1 -> 0.5; neuron 1: 0, 3 -> 2.5, 0
    # class 1, neuron 0: 1 -> 0.5, 6 -> 5.5, -2 -> 0; neuron 1: 0, 0, 1 -> 0.5
    torch.testing.assert_close(network(image), torch.tensor([[3.125, 6.5]]))


def test_the_order_of_patches_does_not_matter():
    network = init_model("patchnet,scale=0.5", 3, (2, 4, 6), seed=0)
    images = torch.randn(5, 2, 4, 6)
    shuffled = images[..., torch.tensor([3, 0, 5, 1, 4, 2])]
    torch.testing.assert_close(network(shuffled), network(images))
    assert not torch.allclose(network(images.flip(2)), network(images))


def test_the_gradient_is_that_of_finite_differences():
    network = init_model("patchnet,scale=0.5,width=2", 3, (1, 4, 5), seed=1).double()
    images = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    weight = network.get_parameter("conv.weight")

    def logits(value: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(network, {"conv.weight": value}, (images,))

    start = weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(logits, (start,))


def test_initial_weights_have_the_deviation_asked_for():
    network = init_model("patchnet,width=50,scale=0.01", 10, (1, 64, 8), seed=0)
    weight = network.get_parameter("conv.weight")
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_the_gradient_vanishes_below_and_stays_finite_far_above():
    network = build("patchnet,width=1,power=16", 2, (1, 1, 1))
    weight = network.get_parameter("conv.weight")
    nn.init.constant_(weight, 1.0)
    network(torch.tensor([[[[1e6]]], [[[-1e6]]]])).sum().backward()
    assert weight.grad is not None
    assert math.isclose(weight.grad[0].item(), 1e6, rel_tol=1e-6)


def test_values_out_of_range_are_refused():
    with pytest.raises(InputError, match="'power' of patchnet should be greater"):
        build("patchnet,power=1", 2, (1, 4, 4))
    with pytest.raises(InputError, match="'rho' of patchnet should be greater than 0"):
        build("patchnet,rho=0.0", 2, (1, 4, 4))
