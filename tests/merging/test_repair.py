from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.states import State, hash_state
from metaensemble.data import ImageData, load_data
from metaensemble.engine import RunLog, evaluate
from metaensemble.merging import AlignedSoup, Bench, Merged, Repair, uniform_soup
from metaensemble.merging.aligning import align
from metaensemble.merging.channels import (
    LARGEST_FACTOR,
    find_layers,
    mean_statistics,
    measure_channels,
)
from metaensemble.merging.repair import _batch_size
from metaensemble.methods import Supervised
from metaensemble.teachers import Ensemble, Member, load_ensemble, save_member
from metaensemble.teachers.member import build_from
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import network_of
from metaensemble.workflows.teach import teach_members

VIT = "vit_small_32x32,depth=2,dim=16,heads=2,mlp_dim=16"
NAMES = ["mlp,width=8,depth=4", "convnet,width=4", "resnet20,width=0.25", VIT]


@pytest.fixture
def pair(
    tmp_path: Path, make_member: Callable[..., Member]
) -> Callable[[str], Ensemble]:
    """Make two independent members, their norms and biases drawn at random."""

    def make(name: str) -> Ensemble:
        for seed in range(2):
            member = make_member(tmp_path / f"{seed}.safetensors", seed, name)
            state = member.state()
            random = torch.Generator().manual_seed(seed)
            for tensor in state.values():
                if tensor.ndim == 1 and tensor.is_floating_point():
                    tensor += 0.3 * torch.rand(tensor.shape, generator=random)
            save_member(member.path, state, member.info)
        return load_ensemble([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])

    return make


def network_with(info: Any, state: State) -> nn.Module:
    network = build_from(info).eval()
    network.load_state_dict(state)
    return network


def images_of(bench: Bench, count: int) -> list[Tensor]:
    """Return the images that the merger sees, if it takes one batch."""
    return list(bench.batches(bench.data.normalization, count, augmented=True))


@pytest.mark.parametrize("count", [54, 7])
@pytest.mark.parametrize("name", ["mlp,width=8,depth=4", VIT])
def test_copies_of_a_network_stay_as_they_are(
    pair: Callable[[str], Ensemble], blind: Bench, name: str, count: int
):
    member = pair(name).members[0]
    merged = Repair(images=count).merge(Ensemble((member, member, member)), blind)
    for key, tensor in member.state().items():
        torch.testing.assert_close(merged.state[key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet,width=4", "resnet20,width=0.25"])
def test_copies_with_batch_norm_compute_what_they_did(
    pair: Callable[[str], Ensemble], blind: Bench, name: str
):
    (images,) = images_of(blind, 54)
    member = pair(name).members[0]
    merged = Repair().merge(Ensemble((member, member)), blind)
    before = network_with(member.info, member.state())
    after = network_with(member.info, merged.state)
    torch.testing.assert_close(after(images), before(images), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_channels_have_the_members_mean_statistics(
    pair: Callable[[str], Ensemble], blind: Bench, name: str
):
    members = pair(name)
    merged = Repair().merge(members, blind)
    batches = images_of(blind, 54)
    aligned = align(members, members.states(), 0)
    network = network_with(members.info, merged.state)
    layers = find_layers(network, batches[0]).layers
    assert len(layers) >= 4
    goals = mean_statistics(
        [
            measure_channels(network_with(members.info, dict(state)), layers, batches)
            for state in aligned
        ]
    )
    reached = measure_channels(network, layers, batches)
    for layer in layers:
        mean, deviation = reached[layer.name].overall()
        wanted_mean, wanted = goals[layer.name].overall()
        live = wanted > 1e-3
        size = float(wanted.max())
        # batch norm keeps unbiased variances of as few as 54 values: 1 in 108
        torch.testing.assert_close(deviation[live], wanted[live], rtol=2e-2, atol=1e-4)
        torch.testing.assert_close(mean, wanted_mean, rtol=1e-2, atol=1e-2 * size)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_stay_and_runs_repeat(
    pair: Callable[[str], Ensemble], blind: Bench, name: str
):
    members = pair(name)
    first, second = (Repair(images=20).merge(members, blind) for _ in range(2))
    assert hash_state(first.state) == hash_state(second.state)
    assert hash_state(first.state) != hash_state(uniform_soup(members.states()))
    plain = members.members[0].state()
    assert list(first.state) == list(plain)
    for key, tensor in plain.items():
        assert first.state[key].shape == tensor.shape
        assert first.state[key].dtype == tensor.dtype
    assert first.notes[0].startswith("layers whose channels were repaired: ")
    assert "channel statistics come from only 20 images" in first.notes


@pytest.mark.parametrize("matching", ["weights", "activations"])
@pytest.mark.parametrize("name", ["mlp,width=24,depth=5", "convnet,width=4"])
def test_variance_collapses_without_it_and_not_with_it(
    tmp_path: Path,
    real_bench: Callable[..., Bench],
    name: str,
    matching: Any,
):
    data = load_data("digits", limit_train=300)
    running = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(running, data, None, RunLog(quiet=True))
    teaching = Supervised(epochs=12, batch_size=32, learning_rate=0.1)
    taught = teach_members(
        session, tmp_path, architecture=name, members=2, method=teaching
    )
    members = Ensemble(tuple(taught))
    method = Repair(matching=matching)
    bench = real_bench(data, members, method)
    count = len(data.train)

    def batches() -> list[Tensor]:
        return images_of(bench, count)

    aligned = align(members, members.states(), 0, matching, batches)
    merged = {
        "mean": Merged(uniform_soup(aligned), members.info),
        "repaired": method.merge(members, bench),
    }
    networks = {key: network_of(session, m, False) for key, m in merged.items()}
    layers = find_layers(networks["mean"], batches()[0]).layers

    def deviations(network: nn.Module) -> list[Tensor]:
        found = measure_channels(network, layers, batches())
        return [moments.overall()[1].mean() for moments in found.values()]

    wanted = [deviations(network_with(members.info, dict(state))) for state in aligned]
    goal = torch.tensor(wanted).mean(0)
    collapsed = torch.tensor(deviations(networks["mean"])) / goal
    restored = torch.tensor(deviations(networks["repaired"])) / goal
    assert collapsed[-1] < 0.8, "there must be something to repair"
    assert ((restored - 1).abs() < 0.05).all()

    accuracy = {
        key: evaluate(net, data.normalization, data.validation).measured.accuracy
        for key, net in networks.items()
    }
    assert accuracy["repaired"] > accuracy["mean"]


def test_later_reestimation_changes_little(
    pair: Callable[[str], Ensemble], blind: Bench, tmp_path: Path
):
    """The running statistics are already those of the repaired network's inputs."""
    members = pair("convnet,width=4")
    merged = Repair().merge(members, blind)
    running = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(running, blind.data, None, RunLog(quiet=True))
    kept, again = (network_of(session, merged, stale) for stale in (False, True))
    (images,) = images_of(blind, 54)
    assert not Repair.stale_statistics
    agree = kept(images).argmax(1) == again(images).argmax(1)
    assert agree.float().mean() > 0.9
    parameters = dict(again.named_parameters())
    assert all(torch.equal(p, parameters[key]) for key, p in kept.named_parameters())


def test_one_training_image_is_too_little(
    pair: Callable[[str], Ensemble], judging: Callable[..., Bench], digits: ImageData
):
    one = replace(digits, train=digits.train.subset(torch.arange(1)))
    bench = replace(judging(lambda _: None), data=one)
    message = (
        "statistics of channels need at least two training images, but there is 1: too "
        "little data for REPAIR; choose aligned_soup"
    )
    with pytest.raises(InputError, match=message):
        Repair().merge(pair("mlp,width=8"), bench)


@pytest.mark.parametrize("count", [2, 3, 250, 251, 720, 1000, 1001, 62_251, 100_001])
def test_no_batch_is_of_one_image(count: int):
    size = _batch_size(count)
    assert 2 <= size <= 250
    assert count % size != 1


def test_dead_units_stay_finite(
    tmp_path: Path, make_member: Callable[..., Member], blind: Bench
):
    for seed in range(2):
        member = make_member(tmp_path / f"{seed}.safetensors", seed, "mlp,width=8")
        state = member.state()
        state["hidden.0.weight"][:3] = 0
        state["hidden.0.bias"][:3] = 5.0 + seed
        save_member(member.path, state, member.info)
    members = load_ensemble([tmp_path])
    state = Repair().merge(members, blind).state
    assert all(tensor.isfinite().all() for tensor in state.values())
    largest = max(t.abs().max() for t in members.states()[0].values())
    assert state["hidden.0.weight"].abs().max() < LARGEST_FACTOR * largest


def test_activations_match_three_members(
    tmp_path: Path, make_member: Callable[..., Member], blind: Bench
):
    for seed in range(3):
        make_member(tmp_path / f"{seed}.safetensors", seed, "mlp,width=8,depth=3")
    members = load_ensemble([tmp_path])
    by_weights = Repair().merge(members, blind)
    by_activations = Repair(matching="activations").merge(members, blind)
    assert hash_state(by_weights.state) != hash_state(by_activations.state)
    plain = AlignedSoup().merge(members, blind)
    assert hash_state(plain.state) != hash_state(by_weights.state)


def test_different_architectures_are_refused(
    tmp_path: Path, make_member: Callable[..., Member], blind: Bench
):
    for seed, name in enumerate(("mlp,width=8", "convnet,width=2")):
        make_member(tmp_path / f"{seed}.safetensors", seed, name)
    with pytest.raises(
        InputError, match="members to be repaired must share one architecture"
    ):
        Repair().merge(load_ensemble([tmp_path]), blind)
