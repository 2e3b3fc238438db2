import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.batch_ensemble import BatchEnsemble
from metaensemble.models import build

SHAPE = (3, 8, 8)


class Mixed(nn.Module):
    """Every kind of layer that has factors, with biases: depthwise and grouped too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2, bias=False)
        self.volume = nn.Conv3d(6, 6, (1, 2, 2))
        self.line = nn.Conv1d(6, 5, 3, groups=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        x = self.grouped(self.depthwise(x).tanh())
        x = self.volume(x[:, :, None])[:, :, 0].tanh()  # (batch, 6, 7, 7)
        x = self.line(x.flatten(2)).tanh()  # (batch, 5, 47)
        return self.fc(x.transpose(1, 2)).mean(1)  # a linear layer on tokens


def drawn(ensemble: BatchEnsemble, scale: float = 0.3) -> BatchEnsemble:
    """Move the factors away from 1, each by its own draw."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in (*ensemble.inputs, *ensemble.outputs):
            factor += scale * torch.randn(factor.shape, generator=random)
    return ensemble


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture
def small() -> nn.Module:
    """Two layers with biases, for gradients by hand."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 3))


def test_factors_of_one_leave_the_network_as_it_is(network, images):
    ensemble = BatchEnsemble(network, 3, SHAPE)
    plain = network(images)
    logits = ensemble(images)
    assert logits.shape == (3, 5, 4)
    for member in logits:
        torch.testing.assert_close(member, plain)
    for name, tensor in ensemble.merged().state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


@pytest.mark.parametrize(
    "architecture",
    [
        "mlp,width=8",
        "convnet,width=4",
        "resnet20,width=0.25",
        "wrn16_1",
        "vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=16",
    ],
)
def test_each_member_is_a_plain_network(architecture, images):
    torch.manual_seed(0)
    network = build(architecture, 3, SHAPE).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)  # the heads of ViTs start at 0
    ensemble = drawn(BatchEnsemble(network, 3, SHAPE))
    logits = ensemble(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    for i, member in enumerate(logits):
        alone = ensemble.merged([float(i == j) for j in range(3)])
        torch.testing.assert_close(alone(images), member)


def test_a_member_is_the_network_with_its_factors_in_the_weights(network, images):
    # kernel diag(s) W diag(r), by hand, groups and biases included
    ensemble = drawn(BatchEnsemble(network, 2, SHAPE))
    factors = {
        name: (1 + r[1], 1 + s[1])
        for name, r, s in zip(
            ensemble.names, ensemble.inputs, ensemble.outputs, strict=True
        )
    }
    assert set(factors) == {"first", "depthwise", "grouped", "volume", "line", "fc"}
    plain = copy.deepcopy(network)
    with torch.no_grad():
        for name, (r, s) in factors.items():
            layer = plain.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            rows = len(layer.weight)
            per_group = layer.weight.shape[1]
            groups = getattr(layer, "groups", 1)
            for row in range(rows):
                begin = row // (rows // groups) * per_group
                for column in range(per_group):
                    layer.weight[row, column] *= s[row] * r[begin + column]
            if layer.bias is not None:
                assert isinstance(layer.bias, Tensor)
                layer.bias *= s
    torch.testing.assert_close(plain(images), ensemble(images)[1])


def test_the_merge_has_the_mean_factors(network, images):
    ensemble = drawn(BatchEnsemble(network, 3, SHAPE))
    merged = ensemble.merged()(images)
    with torch.no_grad():
        for factor in (*ensemble.inputs, *ensemble.outputs):
            factor[:] = factor.mean(0)
    for member in ensemble(images):
        torch.testing.assert_close(merged, member)


def test_shares_weigh_the_members_factors(network, images):
    ensemble = drawn(BatchEnsemble(network, 2, SHAPE))
    merged = ensemble.merged([0.25, 0.75])(images)
    with torch.no_grad():
        for factor in (*ensemble.inputs, *ensemble.outputs):
            factor[:] = 0.25 * factor[0] + 0.75 * factor[1]
    torch.testing.assert_close(merged, ensemble(images)[0])


def test_merging_equal_members_changes_nothing(network, images):
    ensemble = drawn(BatchEnsemble(network, 4, SHAPE))
    with torch.no_grad():
        for factor in (*ensemble.inputs, *ensemble.outputs):
            factor[:] = factor[:1].clone()
    merged = ensemble.merged()(images)
    torch.testing.assert_close(merged, ensemble(images)[2])


def test_a_members_factors_see_its_copy_of_the_batch_only(small, images):
    ensemble = drawn(BatchEnsemble(small, 3, SHAPE))
    ensemble(images)[1].square().sum().backward()
    for factor in (*ensemble.inputs, *ensemble.outputs):
        assert factor.grad is not None
        assert factor.grad[1].abs().max() > 0
        assert factor.grad[[0, 2]].abs().max() == 0


def test_gradients_do_not_shrink_with_the_number_of_members(small, images):
    found = []
    for members in (1, 2, 4):
        ensemble = BatchEnsemble(copy.deepcopy(small), members, SHAPE)
        logits = ensemble(images)
        labels = torch.tensor([0, 1, 2, 0, 1]).repeat(members)
        F.cross_entropy(logits.flatten(0, 1), labels).backward()  # mean over all
        gradients = [f.grad for f in (*ensemble.inputs, *ensemble.outputs)]
        assert all(g is not None and (g == g[:1]).all() for g in gradients)
        found.append(torch.cat([g[0] for g in gradients if g is not None]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_the_gradient_is_that_by_the_factor_times_the_members(small, images):
    ensemble = drawn(BatchEnsemble(small, 2, SHAPE))
    ensemble(images).square().mean().backward()
    factor = ensemble.outputs[0]
    assert factor.grad is not None
    step = torch.zeros_like(factor)
    step[1, 2] = 1e-2
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(ensemble)
        moved.outputs[0].data += sign * step
        losses.append(moved(images).square().mean().item())
    slope = (losses[0] - losses[1]) / 2e-2
    assert factor.grad[1, 2].item() == pytest.approx(2 * slope, rel=1e-2)


def test_weight_decay_draws_the_factors_to_one(small):
    # plain descent with the engine's decay: d <- d - rate * wd * d, for any M
    ensemble = BatchEnsemble(small, 3, SHAPE)
    rest = ensemble.inputs[1]  # r = 1: no decay
    moved = ensemble.inputs[0]
    moved.data[:] = 0.5
    optimizer = torch.optim.SGD([moved, rest], lr=1.0, weight_decay=0.1)
    moved.grad, rest.grad = torch.zeros_like(moved), torch.zeros_like(rest)
    optimizer.step()
    torch.testing.assert_close(moved.data, torch.full_like(moved, 0.45))
    assert rest.abs().max() == 0
    assert all(f.ndim == 2 for f in (*ensemble.inputs, *ensemble.outputs))


def test_the_network_is_plain_outside_of_a_pass(network, images):
    names = list(network.state_dict())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ensemble = drawn(BatchEnsemble(network, 2, SHAPE))
    ensemble(images)
    merged = ensemble.merged()
    assert list(merged.state_dict()) == names
    assert [f"network.{name}" for name in names] == list(ensemble.state_dict())[:11]
    for module in (*network.modules(), *merged.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.is_contiguous() for p in merged.parameters())
    again = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError):
        ensemble(torch.randn(2, 3, 2, 2, generator=again))  # too small for the layers
    assert not any(m._forward_hooks for m in network.modules())


def test_building_it_leaves_modes_and_statistics_alone():
    network = build("convnet,width=4", 3, SHAPE).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    BatchEnsemble(network, 2, SHAPE)
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_attention_is_shared_and_the_rest_of_a_vit_is_not():
    vit = build("vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=16", 3, SHAPE)
    layer = "encoder.layers.encoder_layer_0.mlp"
    assert BatchEnsemble(vit, 2, SHAPE).names == (
        "conv_proj",
        f"{layer}.0",
        f"{layer}.3",
        "heads.head",
    )


class Odd(nn.Module):
    """A tied weight, a layer without a batch, and one with the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.table = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x[:, 0])) + self.table(torch.ones(1, 8))
        x = self.second(x.transpose(0, 1)).transpose(0, 1)  # (rows, batch, 8)
        return self.head(x.mean(1))


def test_layers_that_are_not_the_batchs_own_are_shared(images):
    ensemble = drawn(BatchEnsemble(Odd(), 2, SHAPE))
    assert ensemble.names == ("head",)
    torch.testing.assert_close(ensemble.merged([0.0, 1.0])(images), ensemble(images)[1])


def test_a_network_without_such_layers_is_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.mean((2, 3))

    with pytest.raises(InputError, match=r"this Scale has none .* choose --method kd"):
        BatchEnsemble(Scale(), 2, SHAPE)


def test_factors_may_start_around_one(network):
    torch.manual_seed(0)
    ensemble = BatchEnsemble(network, 4, SHAPE, init_std=0.5)
    factors = torch.cat([f.flatten() for f in (*ensemble.inputs, *ensemble.outputs)])
    assert factors.std().item() == pytest.approx(0.5, rel=0.15)
    assert factors.mean().item() == pytest.approx(0, abs=0.1)


def test_copies_are_laid_out_as_the_images_are(network, images):
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ensemble = BatchEnsemble(network, 2, SHAPE)
    layout = torch.channels_last
    ensemble(images.contiguous(memory_format=layout))
    assert seen[-1].is_contiguous(memory_format=layout)
    assert torch.equal(seen[-1][5:], images)  # members go first
