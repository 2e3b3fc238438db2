import pytest
import torch
from torch import nn

from metaensemble.models import build
from metaensemble.models.stem import once, share, stem


@pytest.mark.parametrize(
    ("architecture", "size", "names"),
    [
        ("convnet,width=4", 8, ("conv1", "bn1")),
        ("resnet20,width=0.25", 8, ("conv1", "bn1")),
        ("wrn16_1", 8, ("conv1", "layer1.0.bn1")),
        ("mlp,width=8", 8, ("hidden.0",)),
        ("mlp,width=8,batchnorm=true", 8, ("hidden.0", "hidden.1")),
        ("vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=16", 8, ("conv_proj",)),
    ],
)
def test_the_stem_is_the_first_layer_and_the_norm_it_feeds(architecture, size, names):
    network = build(architecture, 3, (3, size, size)).train()
    assert stem(network, (3, size, size)) == names
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_without_a_layer_there_is_no_stem():
    assert stem(nn.Flatten(), (1, 2, 2)) == ()


class Twice(nn.Module):
    """Its activation works in place, as many a stranger's does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.swish = nn.Hardswish(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.swish(self.bn(self.conv(images))).flatten(1)


def test_a_shared_stem_runs_once_per_batch_and_says_the_same_to_all():
    torch.manual_seed(0)
    networks = [Twice(), Twice(), Twice()]
    share(networks, ("conv", "bn"))
    assert all(network.conv is networks[0].conv for network in networks)
    calls = []
    networks[0].conv.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    alone = Twice()
    alone.load_state_dict(networks[0].state_dict())
    expected = alone(images)
    with once([networks[0].conv, networks[0].bn]):
        said = [network(images) for network in networks]
    for value in said:
        torch.testing.assert_close(value, expected)
    assert networks[0].bn.num_batches_tracked == 1
    torch.testing.assert_close(networks[0].bn.running_var, alone.bn.running_var)

    # gradients of all of them arrive
    torch.stack(said).square().sum().backward()
    expected.square().sum().backward()
    wanted = alone.bn.weight.grad
    assert wanted is not None
    torch.testing.assert_close(networks[0].bn.weight.grad, 3 * wanted)

    # other images are other calls, and nothing is remembered afterwards
    with once([networks[0].conv]):
        first, second = networks[0].conv(images), networks[0].conv(2 * images)
    assert not torch.equal(first, second)
    assert "forward" not in vars(networks[0].conv)
