import pytest
import torch
from torch import nn

from metaensemble.models import init_model
from metaensemble.models.logits import with_scaled_logits


@pytest.mark.parametrize(
    "name",
    [
        "mlp,width=8",
        "convnet,width=4",
        "resnet20,width=0.25",
        "vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=16",
    ],
)
def test_the_logits_are_multiplied(name: str):
    network = init_model(name, 5, (3, 8, 8), 0).train()
    for parameter in network.parameters():  # heads may start at zero
        nn.init.normal_(parameter, 0.0, 0.2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    scaled = with_scaled_logits(network, (3, 8, 8), 0.4)
    assert scaled is not None
    assert not scaled.training
    assert network.training
    images = torch.randn(6, 3, 8, 8)
    torch.testing.assert_close(scaled(images), 0.4 * network.eval()(images))
    after = network.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    own = scaled.state_dict()
    changed = {k for k in own if not torch.equal(own[k], after[k])}
    assert len({k.rpartition(".")[0] for k in changed}) == 1  # one layer
    assert 1 <= len(changed) <= 2


class _Rectified(nn.Module):
    """Logits that are no output of the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1)).tanh()


class _Pooled(nn.Module):
    """No linear layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).mean((2, 3))


def test_a_head_that_is_not_linear_is_left_alone():
    assert with_scaled_logits(_Rectified(), (1, 8, 8), 0.5) is None
    assert with_scaled_logits(_Pooled(), (1, 8, 8), 0.5) is None
