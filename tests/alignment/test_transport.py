"""Transport between networks of one depth and other widths."""

import builtins
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from metaensemble.alignment import (
    apply_permutations,
    derive_permutations,
    random_permutations,
)
from metaensemble.alignment.groups import Axis, Group
from metaensemble.alignment.plans import Solver, group_plan
from metaensemble.alignment.transport import (
    Side,
    apply_transport,
    plans_by_activations,
    plans_by_weights,
)
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator, seeded
from metaensemble.models import build

KINDS = ("whole", "exact", "sinkhorn")
SHAPE = (3, 8, 8)
WIDER = {
    "mlp,width=8": "mlp,width=16",
    "mlp,width=8,depth=3,batchnorm=true": "mlp,width=16,depth=3,batchnorm=true",
    "convnet,width=4": "convnet,width=8",
    "resnet20,width=0.5": "resnet20,width=1",
    "resnet20,width=0.5,shortcut=B": "resnet20,width=1,shortcut=B",
    "vit_small_32x32,depth=1,dim=8,heads=1,mlp_dim=12": (
        "vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=24"
    ),
}


class Flat(nn.Sequential):
    """A linear layer behind flattened positions, and embeddings by a transposed one."""

    def __init__(self, width: int):
        super().__init__(
            nn.Conv2d(3, width, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 2 * width, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, width),
            nn.ReLU(),
            nn.Linear(width, 3),
        )


class Joined(nn.Module):
    """Every layer sees all before it, the images first; a depthwise one among them."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(3 + width)
        self.second = nn.Conv2d(3 + width, 2 * width, 3, padding=1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, groups=2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.cat([images, self.first(images)], dim=1)
        x = self.depthwise(self.second(self.norm(x).relu()).relu())
        return self.head(x.relu().mean((2, 3)))


def side(name: str, seed: int = 0) -> Side:
    """A network with generic weights and statistics."""
    kind, _, width = name.partition(":")
    own = {"flat": Flat, "joined": Joined}
    with seeded(0):
        network = own[kind](int(width)) if kind in own else build(name, 3, SHAPE)
    random = generator(seed, name)
    state = {}
    for key, tensor in network.state_dict().items():
        value = torch.rand(tensor.shape, generator=random)
        if tensor.ndim > 1:
            value = (value - 0.5) * 3 / tensor[0].numel() ** 0.5
        state[key] = value if tensor.is_floating_point() else tensor.clone()
    return Side(network.eval(), derive_permutations(network, SHAPE), state)


def logits(side: Side) -> torch.Tensor:
    double = {
        n: t.double() if t.is_floating_point() else t for n, t in side.state.items()
    }
    images = torch.randn(3, *SHAPE, generator=generator("images")).double()
    with torch.no_grad():
        return torch.func.functional_call(side.network, double, (images,))


def transported(mine: Side, theirs: Side, plans: dict[str, torch.Tensor]) -> Side:
    state = apply_transport(mine, theirs, plans)
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in mine.state.items()
    }
    return Side(mine.network, mine.spec, state)


def copies(mine: Side, theirs: Side) -> dict[str, torch.Tensor]:
    """Plans that give every channel two copies, side by side, heads as wholes."""
    plans = {}
    for group, other in zip(mine.spec.groups, theirs.spec.groups, strict=True):
        assert group.size == 2 * other.size
        of = torch.arange(group.size).view(group.parts, -1)  # per part
        per_part = other.size // other.parts
        inside = per_part // other.heads
        within = of % (2 * per_part)
        source = within % per_part if group.heads > 1 else within // 2
        source = source + per_part * torch.arange(group.parts)[:, None]
        assert inside == per_part or group.heads == 1
        plan = torch.zeros(other.size, group.size, dtype=torch.float64)
        plan[source.flatten(), torch.arange(group.size)] = 1 / group.size
        plans[group.name] = plan
    return plans


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [*WIDER.items(), ("flat:4", "flat:8"), ("joined:4", "joined:8")],
)
def test_copied_channels_compute_the_same(narrow, wide):
    mine, theirs = side(wide), side(narrow)
    wider = transported(mine, theirs, copies(mine, theirs))
    torch.testing.assert_close(logits(wider), logits(theirs), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits(mine), logits(theirs), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["whole", "exact"])
@pytest.mark.parametrize("name", ["mlp,width=8", "convnet,width=4", "joined:4"])
def test_a_network_is_found_in_its_copies(name, kind):
    wide = WIDER.get(name, "joined:8")
    theirs = side(name)
    doubled = transported(side(wide), theirs, copies(side(wide), theirs))
    plans = plans_by_weights(doubled, theirs, Solver(kind=kind))
    for group, want in copies(doubled, theirs).items():
        torch.testing.assert_close(plans[group], want)
    again = transported(doubled, theirs, plans)
    torch.testing.assert_close(logits(again), logits(theirs), rtol=1e-5, atol=1e-5)
    # and back: of copies remains the network
    back = plans_by_weights(theirs, doubled, Solver(kind=kind))
    narrow = apply_transport(theirs, doubled, back)
    for key, tensor in theirs.state.items():
        torch.testing.assert_close(narrow[key], tensor)


@pytest.mark.parametrize("kind", ["whole", "exact"])
@pytest.mark.parametrize("name", [*WIDER, "wrn16_1", "flat:4", "joined:4"])
def test_a_network_is_transported_to_itself_as_it_is(name, kind):
    own = side(name)
    plans = plans_by_weights(own, own, Solver(kind=kind))
    for group in own.spec.groups:
        want = torch.eye(group.size, dtype=torch.float64) / group.size
        torch.testing.assert_close(plans[group.name], want)
    same = apply_transport(own, own, plans)
    assert all(torch.equal(same[key], own.state[key]) for key in own.state)


@pytest.mark.parametrize("kind", ["whole", "exact"])
@pytest.mark.parametrize("name", [*WIDER, "wrn16_1", "flat:4", "joined:4"])
def test_a_hidden_permutation_is_undone(name, kind):
    own = side(name)
    hidden = apply_permutations(own.spec, random_permutations(own.spec, 1), own.state)
    theirs = Side(own.network, own.spec, hidden)
    plans = plans_by_weights(own, theirs, Solver(kind=kind))
    back = apply_transport(own, theirs, plans)
    assert all(torch.equal(back[key], own.state[key]) for key in own.state)


@pytest.mark.parametrize("name", ["convnet,width=4", "resnet20,width=0.5", "joined:4"])
def test_a_hidden_permutation_is_undone_by_activations(name):
    own = side(name)
    for key, tensor in own.state.items():  # no unit that always is silent
        if tensor.ndim == 1 and key.endswith(("bias", "running_mean")):
            tensor -= 0.5
    hidden = apply_permutations(own.spec, random_permutations(own.spec, 1), own.state)
    theirs = Side(own.network, own.spec, hidden)
    images = torch.randn(16, *SHAPE, generator=generator("some"))
    plans = plans_by_activations(own, theirs, Solver(), [(images, images)])
    back = apply_transport(own, theirs, plans)
    assert all(torch.equal(back[key], own.state[key]) for key in own.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mine", "theirs"), [(5, 5), (5, 8), (8, 5), (4, 8), (9, 2)])
def test_the_mass_of_every_channel_is_moved(kind, mine, theirs):
    cost = torch.rand(theirs, mine, generator=generator("cost"), dtype=torch.float64)
    plan = Solver(kind=kind).plan(cost)
    assert (plan >= 0).all()
    rows, columns = plan.sum(1), plan.sum(0)
    if kind != "whole":
        torch.testing.assert_close(
            rows, torch.full_like(rows, 1 / theirs), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            columns, torch.full_like(columns, 1 / mine), atol=1e-6, rtol=0
        )
        return
    widest, narrow = (rows, columns) if theirs >= mine else (columns, rows)
    torch.testing.assert_close(widest, torch.full_like(widest, 1 / len(widest)))
    counts = narrow * len(widest)
    assert counts.max() - counts.min() <= 1 + 1e-9
    assert counts.min() >= 1 - 1e-9
    assert int((plan > 0).sum()) == len(widest)


@pytest.mark.parametrize("kind", ["whole", "exact"])
def test_plans_of_equal_widths_are_assignments(kind):
    cost = torch.rand(7, 7, generator=generator("cost"), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost.numpy())
    plan = Solver(kind=kind).plan(cost)
    assert plan.argmax(1).tolist() == columns.tolist()
    assert float((plan * cost).sum()) == pytest.approx(
        float(cost[rows, columns].mean()), abs=1e-12
    )


def test_whole_plans_are_the_cheapest_of_their_kind():
    cost = torch.rand(4, 3, generator=generator("cost"), dtype=torch.float64)
    plan = Solver(kind="whole").plan(cost)
    choices = torch.cartesian_prod(*[torch.arange(3)] * 4)
    onto = [c for c in choices if len(set(c.tolist())) == 3]
    best = min(float(cost[torch.arange(4), c].mean()) for c in onto)
    assert float((plan * cost).sum()) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
def test_sinkhorn_tends_to_the_exact_plan(shape):
    cost = torch.rand(*shape, generator=generator("cost"), dtype=torch.float64)
    exact = Solver(kind="exact").plan(cost)
    far, near, nearest = (
        float(
            (Solver(kind="sinkhorn", regularization=r).plan(cost) - exact).abs().sum()
        )
        for r in (1.0, 0.1, 0.005)
    )
    assert far > near > nearest
    assert nearest < 0.02
    even = Solver(kind="sinkhorn", regularization=1e4).plan(cost)
    torch.testing.assert_close(
        even, torch.full_like(even, 1 / cost.numel()), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dead_units_cost_nothing_and_stop_nothing(kind):
    cost = torch.tensor([[float("nan"), 1, 2], [0, float("inf"), 1]])
    assert float(Solver(kind=kind).plan(cost).sum()) == pytest.approx(1)


def test_heads_move_as_wholes():
    narrow = "vit_small_32x32,depth=1,dim=8,heads=2,mlp_dim=12"
    wide = "vit_small_32x32,depth=1,dim=12,heads=3,mlp_dim=12"
    mine, theirs = side(wide), side(narrow)
    plans = plans_by_weights(mine, theirs, Solver())
    group = next(g for g in mine.spec.groups if g.heads == 3)
    plan = plans[group.name].view(2, 2, 4, 2, 3, 4)  # part, head, channel; twice
    assert plan[0, :, :, 1].sum() == plan[1, :, :, 0].sum() == 0
    blocks = plan.sum((2, 5))  # (part, head, part, head)
    torch.testing.assert_close(blocks[0, :, 0], blocks[1, :, 1])
    assert ((blocks[0, :, 0] > 0).sum(0) == 1).all()
    assert torch.isfinite(logits(transported(mine, theirs, plans))).all()


def test_heads_of_another_size_are_refused():
    mine = side("vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=12")
    theirs = side("vit_small_32x32,depth=1,dim=8,heads=2,mlp_dim=12")
    with pytest.raises(InputError, match=r"heads of their own size, but .* 4 and of 8"):
        plans_by_weights(mine, theirs, Solver())


def test_equal_groups_with_heads_are_matched_exactly():
    axes = (Axis(tensor="w", dim=0, count=4),)
    group = Group(name="g", size=4, axes=axes, heads=2)
    cost = torch.ones(4, 4)
    cost[2, 1] = cost[3, 0] = cost[0, 2] = cost[1, 3] = 0
    plan = group_plan(Solver(), group, group, cost)
    assert plan.argmax(0).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        ("mlp,width=8", "mlp,width=8,depth=3", r"lacks 'hidden.4.weight'"),
        ("mlp,width=8,depth=3", "mlp,width=8", r"only the reference has 'hidden.4"),
        ("mlp,width=8", "convnet,width=4", r"only the reference has 'hidden.0"),
        ("resnet20,width=0.5", "resnet20,width=0.5,shortcut=B", "lacks '.*downsample"),
    ],
)
def test_networks_of_another_depth_are_refused(mine, theirs, why):
    with pytest.raises(InputError, match=f"one depth and the same layers.* {why}.*kd"):
        plans_by_weights(side(mine), side(theirs), Solver())


def test_networks_of_other_kernels_or_symmetries_are_refused():
    mine, theirs = side("flat:4"), side("flat:4")
    theirs.state["0.weight"] = torch.zeros(4, 3, 5, 5)
    with pytest.raises(InputError, match=r"'0.weight' is of shape \(4, 3, 3, 3\) and"):
        apply_transport(mine, theirs, {})
    first = theirs.spec.groups[0].name
    less = Side(mine.network, mine.spec.without([first], "so"), mine.state)
    with pytest.raises(InputError, match="can move in one of them only"):
        apply_transport(mine, less, {})
    group = mine.spec.groups[0]
    fewer = group.model_copy(update={"axes": group.axes[:-1]})
    spec = mine.spec.model_copy(update={"groups": (fewer, *mine.spec.groups[1:])})
    with pytest.raises(InputError, match="are used otherwise"):
        apply_transport(mine, Side(mine.network, spec, mine.state), {})


def test_activations_need_images_and_as_many_positions():
    mine = side("convnet,width=4")
    with pytest.raises(InputError, match="needs images, at least two of them"):
        plans_by_activations(mine, mine, Solver(), [])
    batches = [(torch.zeros(2, *SHAPE), torch.zeros(2, 3, 4, 4))]
    with pytest.raises(InputError, match="as many positions"):
        plans_by_activations(mine, mine, Solver(), batches)


def test_without_pot_plans_are_whole(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name == "ot":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "ot", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    cost = torch.rand(3, 3, generator=generator("cost"))
    for kind in ("exact", "sinkhorn"):
        with pytest.raises(InputError, match=r"needs POT, .* pip install 'metaens"):
            Solver(kind=kind).plan(cost)
    assert Solver().plan(cost).shape == (3, 3)
