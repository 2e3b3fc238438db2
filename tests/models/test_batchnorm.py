from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from metaensemble.core.errors import InputError
from metaensemble.models import has_batchnorm, init_model, reestimate_batchnorm

BATCHES = [
    torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
    for seed in range(3)
]


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet20,width=0.25", "wrn16_1,dropout=0.5"])
def test_equals_torchs_update_bn(name: str):
    ours, theirs = (init_model(name, 4, (3, 8, 8), seed=0) for _ in range(2))
    reestimate_batchnorm(ours, BATCHES)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):  # which update_bn would leave on
            module.p = 0.0
    update_bn(BATCHES, theirs)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_average_by_hand():
    model = nn.Sequential(nn.BatchNorm1d(1))
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])]
    reestimate_batchnorm(model, batches)
    assert model.get_buffer("0.running_mean").item() == 4  # of the means 1 and 7
    assert model.get_buffer("0.running_var").item() == 10  # of the unbiased 2 and 18


def test_only_statistics_change_and_twice_is_once():
    model = init_model("convnet,width=4", 4, (3, 8, 8), seed=0)
    before = copy_of(model)
    reestimate_batchnorm(model, BATCHES)
    once = copy_of(model)
    reestimate_batchnorm(model, iter(BATCHES))
    for key, value in model.state_dict().items():
        assert torch.equal(value, once[key])
        statistic = key.split(".")[-1] in (
            "running_mean",
            "running_var",
            "num_batches_tracked",
        )
        assert torch.equal(value, before[key]) != statistic
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_momenta_are_restored_even_after_an_error():
    model = init_model("convnet,width=4", 4, (3, 8, 8), seed=0)
    model.eval()
    model.get_submodule("bn2").train()
    model.get_submodule("bn3").momentum = 0.3  # pyright: ignore

    def broken() -> Iterator[Tensor]:
        yield BATCHES[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        reestimate_batchnorm(model, broken())
    training = [name for name, module in model.named_modules() if module.training]
    assert training == ["bn2"]
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert momenta == [0.1, 0.1, 0.3, 0.1]


def test_without_batchnorm_nothing_is_read():
    def unread() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    model = init_model("mlp", 4, (3, 8, 8), seed=0)
    assert not has_batchnorm(model)
    reestimate_batchnorm(model, unread())
    stateless = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    assert not has_batchnorm(stateless)
    reestimate_batchnorm(stateless, unread())
    assert has_batchnorm(init_model("mlp,batchnorm=true", 4, (3, 8, 8), seed=0))


def test_no_batches_leave_the_statistics_alone():
    model = init_model("convnet,width=4", 4, (3, 8, 8), seed=0)
    reestimate_batchnorm(model, BATCHES)
    before = copy_of(model)
    with pytest.raises(InputError, match="at least one batch of images, but there are"):
        reestimate_batchnorm(model, [])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
