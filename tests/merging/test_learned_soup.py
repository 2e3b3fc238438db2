from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.states import State, hash_state
from metaensemble.data import ImageData
from metaensemble.merging import (
    Bench,
    Judged,
    LearnedSoup,
    Merged,
    Merger,
    uniform_soup,
)
from metaensemble.merging.greedy_soup import merit
from metaensemble.merging.learned_soup import (
    Part,
    groups_of,
    mixed,
    share_gradients,
    with_scaled_logits,
)
from metaensemble.metrics import Measured
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, Member, OutputCache, save_member
from metaensemble.teachers.member import build_from

RealBench = Callable[[ImageData, Ensemble, Merger], Bench]
NAME = "convnet,width=2"
PARTS: list[Part] = ["tensor", "layer", "model"]
TARGETS = ["ensemble", "labels"]


@pytest.fixture
def family(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Four members with batch norm, near one start."""
    start = make_member(tmp_path / "start.safetensors", 9, NAME)
    return Ensemble(
        tuple(
            make_member(tmp_path / f"{seed}.safetensors", seed, NAME, start)
            for seed in range(4)
        )
    )


def figures(accuracy: float) -> Judged:
    return Judged(
        Measured(accuracy=accuracy, top5=1, nll=1, brier=0, ece=0, count=10), 0.0
    )


@pytest.fixture
def preferring(digits: ImageData, tmp_path: Path) -> Callable[..., Bench]:
    """A bench that likes candidates less and less, or more and more."""

    def make(step: float) -> Bench:
        seen: list[Merged] = []

        def judge(merged: Merged) -> Judged:
            seen.append(merged)
            return figures(0.5 + step * len(seen))

        return Bench(digits, judge, OutputCache(tmp_path / "cache"))

    return make


def method(**fields: object) -> LearnedSoup:
    return LearnedSoup.model_validate(
        {"passes": 3, "images_per_step": 27, "metric": "accuracy", **fields}
    )


@pytest.mark.parametrize("per", PARTS)
def test_the_gradient_is_that_of_autograd_through_the_stacked_sum(per: Part):
    name, shape = "resnet20,width=0.25", (3, 8, 8)
    network = init_model(name, 4, shape, 0).double()
    random = torch.Generator().manual_seed(0)
    states = [
        {
            key: tensor + 0.1 * torch.randn(tensor.shape, generator=random).double()
            for key, tensor in network.named_parameters()
        }
        for _ in range(3)
    ]
    states = [{key: t.detach() for key, t in state.items()} for state in states]
    groups = groups_of(network, per)
    images = torch.randn(5, *shape, generator=random).double()

    def loss(parameters: State) -> Tensor:
        return functional_call(network, parameters, (images,)).square().mean()

    shape_of_shares = max(groups.values()) + 1, len(states)
    scores = torch.randn(shape_of_shares, generator=random).double()
    stacked_scores, frugal_scores = (scores.clone().requires_grad_() for _ in range(2))

    shares = stacked_scores.softmax(1)
    stacks = {key: torch.stack([state[key] for state in states]) for key in groups}
    loss(
        {
            key: torch.einsum("m,m...->...", shares[groups[key]], stack)
            for key, stack in stacks.items()
        }
    ).backward()

    shares = frugal_scores.softmax(1)
    soup = {
        key: tensor.requires_grad_()
        for key, tensor in mixed(states, groups, shares.detach()).items()
    }
    loss(soup).backward()
    gradients = {key: t.grad for key, t in soup.items() if t.grad is not None}
    assert len(gradients) == len(groups)
    shares.backward(share_gradients(states, groups, gradients, shares))

    assert stacked_scores.grad is not None
    assert frugal_scores.grad is not None
    assert stacked_scores.grad.abs().max() > 1e-4
    torch.testing.assert_close(
        frugal_scores.grad, stacked_scores.grad, rtol=1e-9, atol=1e-12
    )


def test_groups_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(1, 1))
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert groups_of(network, "tensor") == dict(zip(names, range(6), strict=True))
    layers = [0, 0, 1, 1, 2, 2]
    assert groups_of(network, "layer") == dict(zip(names, layers, strict=True))
    assert groups_of(network, "model") == dict.fromkeys(names, 0)


def test_a_tied_parameter_is_in_one_group_under_both_names():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    groups = groups_of(network, "tensor")
    assert groups["1.weight"] == groups["0.weight"]
    assert groups["1.bias"] != groups["0.bias"]
    layers = groups_of(network, "layer")
    assert layers["1.weight"] == layers["0.weight"] != layers["1.bias"]


def test_the_mean_by_hand():
    states = [{"a": torch.tensor([0.0, 4.0])}, {"a": torch.tensor([1.0, 0.0])}]
    soup = mixed(states, {"a": 1}, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert soup["a"].tolist() == [0.75, 1.0]


@pytest.mark.parametrize("per", PARTS)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_of_a_network_merge_to_that_network_bit_for_bit(
    family: Ensemble, copies: int, per: Part, preferring: Callable[..., Bench]
):
    one = family.members[0]
    for step in (0.1, -0.1):  # the learned soup is taken, the uniform one is
        members = Ensemble((one,) * copies)
        found = method(per=per, scale=False).merge(members, preferring(step))
        assert hash_state(found.state) == hash_state(one.state())


@pytest.mark.parametrize("per", PARTS)
@pytest.mark.parametrize("target", TARGETS)
def test_shares_sum_to_one(
    family: Ensemble, target: str, per: Part, preferring: Callable[..., Bench]
):
    network = build_from(family.info)
    groups = groups_of(network, per)
    one = method(target=target, per=per)
    shares, scale = one.learn(network, groups, family.states(), family, preferring(0.1))
    assert shares.shape == (max(groups.values()) + 1, len(family))
    assert shares.dtype == torch.float64
    assert bool((shares > 0).all())
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)).double())
    assert bool(((shares - 0.25).abs() > 0.01).any())  # it did learn
    assert scale > 0
    assert scale != 1


@pytest.mark.parametrize("metric", ["accuracy", "nll", "kl"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_held_out_figure_is_never_below_the_uniform_soup(
    family: Ensemble,
    digits: ImageData,
    target: str,
    metric: str,
    real_bench: RealBench,
):
    one = method(target=target, metric=metric, rate=0.5)
    bench = real_bench(digits, family, one)
    uniform = Merged(uniform_soup(family.states()), family.info)
    found = one.merge(family, bench)
    held_out = [merit(bench.judge(merged), one.metric) for merged in (uniform, found)]
    assert held_out[1] >= held_out[0]


def test_the_uniform_soup_where_validation_prefers_it(
    family: Ensemble, preferring: Callable[..., Bench]
):
    found = method().merge(family, preferring(-0.1))
    assert hash_state(found.state) == hash_state(uniform_soup(family.states()))
    (note,) = found.notes
    assert note.startswith("the uniform soup, which learning did not surpass: ")
    assert note.endswith("accuracy 0.4000, then 0.3000")


def test_the_notes_of_a_learned_soup(
    family: Ensemble, preferring: Callable[..., Bench]
):
    found = method(target="labels").merge(family, preferring(0.1))
    assert hash_state(found.state) != hash_state(uniform_soup(family.states()))
    shares, scale, warning, held_out = found.notes
    assert shares.startswith("shares per tensor from 0.")
    assert "(uniform: 0.250)" in shares
    assert "folded into the last layer" in scale
    assert "learned on the validation images" in warning
    assert held_out.endswith("on validation: accuracy 0.6000, then 0.7000")
    plain = method(scale=False).merge(family, preferring(0.1))
    assert len(plain.notes) == 2


@pytest.mark.parametrize("per", PARTS)
def test_a_spoilt_member_gets_the_smallest_share(
    family: Ensemble, digits: ImageData, per: Part, preferring: Callable[..., Bench]
):
    """The target are the labels, which the first three members have been taught."""
    data = replace(digits, validation=digits.train)
    inputs = data.normalization(data.train.batch(torch.arange(54)))
    taught = family.members[0].network().train()
    optimizer = torch.optim.Adam(taught.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(taught(inputs), data.train.labels).backward()
        optimizer.step()
    members = []
    for number, noise in enumerate((0.02, 0.02, 0.02, 1.0)):
        random = torch.Generator().manual_seed(number)
        state = {k: t.clone() for k, t in taught.state_dict().items()}
        for key, _ in taught.named_parameters():
            state[key] += noise * torch.randn(state[key].shape, generator=random)
        path = family.members[number].path
        members.append(save_member(path, state, family.info))
    spoilt = Ensemble(tuple(members))
    bench = replace(preferring(0.1), data=data)
    network = build_from(spoilt.info)
    groups = groups_of(network, per)
    one = method(target="labels", per=per, passes=20)
    shares, _ = one.learn(network, groups, spoilt.states(), spoilt, bench)
    if per == "model":
        assert shares[0, 3] < 0.15
    convolutions = [groups[f"conv{i}.weight"] for i in (2, 3, 4)]
    assert bool(
        (shares[convolutions].mean(0)[3] < shares[convolutions].mean(0)[:3]).all()
    )


def test_running_statistics_play_no_part(
    family: Ensemble, preferring: Callable[..., Bench]
):
    found = method().merge(family, preferring(0.1)).state
    for number, member in enumerate(family.members):
        state = member.state()
        for key in state:
            if key.endswith(("running_mean", "running_var")):
                state[key] = torch.full_like(state[key], 1e3 * (number + 1))
        save_member(member.path, state, member.info)
    # the target is read from the cache, where the old members' outputs lie
    again = method().merge(family, preferring(0.1)).state
    for key, _ in build_from(family.info).named_parameters():
        assert torch.equal(found[key], again[key])


def test_members_may_be_held_or_read_each_time(
    family: Ensemble, preferring: Callable[..., Bench]
):
    hashes = {
        hash_state(method(hold=hold).merge(family, preferring(0.1)).state)
        for hold in (True, False, None)
    }
    assert len(hashes) == 1


def test_unlabelled_images_are_learned_from_too(
    family: Ensemble, digits: ImageData, preferring: Callable[..., Bench]
):
    bench = preferring(0.1)
    data = replace(digits, unlabelled=digits.test.subset(torch.arange(30)))
    few = method().merge(family, bench).state
    many = method().merge(family, replace(bench, data=data)).state
    assert hash_state(few) != hash_state(many)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["mlp,width=8", NAME, "resnet20,width=0.25"])
def test_the_scale_is_folded_into_the_last_layer(
    tmp_path: Path, make_member: Callable[..., Member], name: str, scale: float
):
    member = make_member(tmp_path / "a.safetensors", 0, name)
    scaled = with_scaled_logits(member.info, member.state(), scale)
    assert scaled is not None
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = member.network()
    with torch.no_grad():
        before = plain(images)
        plain.load_state_dict(scaled)
        torch.testing.assert_close(plain.eval()(images), before * scale)
    assert sum(not torch.equal(scaled[k], t) for k, t in member.state().items()) == (
        0 if scale == 1 else 2
    )


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()),  # no linear layer
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.LayerNorm(3)),  # none at last
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.LogSoftmax(1)),
    ],
)
def test_a_scale_that_cannot_be_folded_is_left_out(
    network: nn.Module, family: Ensemble, monkeypatch: pytest.MonkeyPatch
):
    module = "metaensemble.merging.learned_soup.build_from"
    monkeypatch.setattr(module, lambda _: network)
    assert with_scaled_logits(family.info, network.state_dict(), 2.0) is None
