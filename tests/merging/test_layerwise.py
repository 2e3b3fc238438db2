import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import fx, nn

from metaensemble.core.seeds import generator
from metaensemble.merging.layerwise import _unfold, fit_layers, ridge_regression
from metaensemble.merging.units import Positions, find_units, outputs_of
from metaensemble.models import init_model, reestimate_batchnorm


def images(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(count, *shape, generator=generator(1, "images"))


def generic(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """Return a network in which no two channels are alike, with statistics to match."""
    network = init_model(name, 5, shape, 0)
    random = generator(0, "generic")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    reestimate_batchnorm(network, images(40, shape).split(20))
    return network.eval()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, (3, 1), stride=2, padding=(0, 1)),
        nn.Conv2d(6, 9, 3, dilation=2, groups=3),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv1d(6, 4, 5, padding=2),
        nn.Conv3d(6, 4, 2),
    ],
)
def test_patches_times_weights_are_the_convolution(conv: nn.Conv2d):
    rank = conv.weight.ndim - 2
    x = torch.randn(2, 6, *(9, 8, 7)[:rank])
    rows = _unfold(conv, x)  # (images, positions, groups, fan)
    weight = conv.weight.reshape(conv.groups, -1, rows.shape[-1])
    made = torch.einsum("npgf,gof->npgo", rows, weight).flatten(2)
    assert conv.bias is not None
    wanted = conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made + conv.bias, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_regression_is_ridge_regression(intercept: bool):
    x, y = torch.randn(50, 4), torch.randn(50, 3)
    prior = torch.zeros(1, 3, 4)
    weight, shift = ridge_regression(x[None], y, prior, 0.1, intercept)
    rows = x - x.mean(0) if intercept else x
    strength = 0.1 * rows.double().square().mean().item() * 50
    known = Ridge(alpha=strength, fit_intercept=intercept).fit(x.numpy(), y.numpy())
    coef = torch.as_tensor(known.coef_).float()
    torch.testing.assert_close(weight[0], coef, atol=1e-4, rtol=1e-4)
    shifted = torch.as_tensor(known.intercept_ + torch.zeros(3).numpy())
    torch.testing.assert_close(shift, shifted.float(), atol=1e-4, rtol=1e-4)


def test_what_the_rows_do_not_span_keeps_the_prior():
    x = torch.zeros(10, 4)
    x[:, 0] = torch.randn(10)
    prior = torch.randn(1, 2, 4)
    weight, _ = ridge_regression(x[None], torch.randn(10, 2), prior, 1e-3, True)
    assert torch.equal(weight[0, :, 1:], prior[0, :, 1:])
    assert not torch.allclose(weight[0, :, 0], prior[0, :, 0])


@pytest.mark.parametrize(
    "name",
    [
        "mlp,width=8,depth=3",
        "convnet,width=4",
        "resnet20",
        "wrn16_1",
        "vgg11_bn",
        "vit_small_32x32,patch=4,dim=16,depth=2,heads=2,mlp_dim=32",
    ],
)
def test_a_network_is_fitted_back_to_another_of_its_kind(name: str):
    shape = (3, 32, 32) if name.startswith("vgg") else (3, 16, 16)
    network, wanted = generic(name, shape), generic(name, shape)
    graph = fx.symbolic_trace(network)
    units = find_units(graph)
    assert units[-1].is_head
    batches = images(40, shape).split(20)
    positions = Positions(400, 40, 0)
    with torch.no_grad():
        targets = outputs_of(wanted, units, batches, positions)
        before = network(batches[0])
        # targets that the network already meets change nothing
        fit_layers(graph, units, batches, targets, positions, 1e-3)
        scale = before.abs().max()
        assert (network(batches[0]) - before).abs().max() < 1e-3 * scale
        # a network that was disturbed comes nearer, in the mean over images
        for unit in units:
            weight = network.get_submodule(unit.name).weight
            assert isinstance(weight, torch.Tensor)
            weight += 0.3 * weight.std() * torch.randn_like(weight)
        every = torch.cat(batches)
        ends = wanted(every)
        off = F.mse_loss(network(every), ends)
        fit_layers(graph, units, batches, targets, positions, 1e-3)
        assert F.mse_loss(network(every), ends) < 0.5 * off
