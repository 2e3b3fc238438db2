from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.states import State, hash_state
from metaensemble.merging import Bench, BestMember, Soup, uniform_soup
from metaensemble.metrics import Measured
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, Member, load_ensemble

NAME = "convnet,width=2"


@pytest.fixture
def states() -> list[State]:
    return [
        init_model(NAME, 10, (1, 8, 8), seed).state_dict()
        | {"bn1.num_batches_tracked": torch.tensor(seed)}
        for seed in range(5)
    ]


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    for seed in range(3):
        make_member(tmp_path / f"{seed}.safetensors", seed, NAME)
    return load_ensemble([tmp_path])


def measured(accuracy: float, nll: float) -> Measured:
    return Measured(accuracy=accuracy, top5=1, nll=nll, brier=0, ece=0, count=10)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 10])
def test_copies_of_a_network_merge_to_that_network_bit_for_bit(
    states: list[State], copies: int
):
    soup = uniform_soup([states[0]] * copies)
    assert list(soup) == list(states[0])
    assert hash_state(soup) == hash_state(states[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_copies_merge_to_themselves_in_every_precision(dtype: torch.dtype):
    state = {"w": torch.randn(1000, dtype=torch.float64).to(dtype)}
    assert hash_state(uniform_soup([state] * 4)) == hash_state(state)


def test_the_soup_is_the_mean():
    states = [{"w": torch.tensor([[0.0, 1.0]])}, {"w": torch.tensor([[1.0, 4.0]])}]
    assert uniform_soup(states)["w"].tolist() == [[0.5, 2.5]]


def test_the_soup_does_not_depend_on_the_order(states: list[State]):
    for state in states:
        del state["bn1.num_batches_tracked"]
    assert hash_state(uniform_soup(states)) == hash_state(uniform_soup(states[::-1]))


def test_the_sum_is_float64():
    # In float32, 1e8 + 1 is 1e8; in float16, the sum would overflow, too.
    numbers = [1e8, 1.0, -1e8, 1.0]
    soup = uniform_soup([{"w": torch.tensor([number])} for number in numbers])
    assert soup["w"].tolist() == [0.5]
    assert soup["w"].dtype == torch.float32
    halves = uniform_soup([{"w": torch.tensor([60_000.0]).half()}] * 2)
    assert halves["w"].tolist() == [60_000.0 // 32 * 32]


def test_integers_are_those_of_the_first(states: list[State]):
    soup = uniform_soup(states[3:])
    assert soup["bn1.num_batches_tracked"].item() == 3
    assert soup["bn1.num_batches_tracked"].dtype == torch.int64


def test_the_soup_is_made_of_copies(states: list[State]):
    before = [hash_state(state) for state in states]
    for chosen in (states, states[:1]):
        for tensor in uniform_soup(chosen).values():
            tensor += 1
    assert [hash_state(state) for state in states] == before


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fc.bias": torch.zeros(3)}, r"member 2 has 'fc.bias' of shape \(3,\) where"),
        ({"extra": torch.zeros(3)}, "member 2 has 'extra' beyond those of the first"),
        ({"fc.bias": None}, "member 2 lacks 'fc.bias' of the first member"),
    ],
)
def test_other_tensors_are_refused(
    states: list[State], change: dict[str, Tensor | None], what: str
):
    merged = {**states[1], **change}
    other = {name: tensor for name, tensor in merged.items() if tensor is not None}
    message = f"a soup's members must share one architecture, but {what}"
    with pytest.raises(InputError, match=message):
        uniform_soup([states[0], other])


def test_the_soup_of_an_ensemble(zoo: Ensemble, blind: Bench):
    merged = Soup().merge(zoo, blind)
    assert hash_state(merged.state) == hash_state(uniform_soup(zoo.states()))
    assert merged.info == zoo.info
    assert Soup.stale_statistics


def test_a_soup_of_two_architectures_is_refused(
    zoo: Ensemble,
    make_member: Callable[..., Member],
    blind: Bench,
):
    other = make_member(zoo.members[0].path.with_name("3.safetensors"), 3)
    message = "a soup's members must share one architecture, but .*3.safetensors is mlp"
    with pytest.raises(InputError, match=message):
        Soup().merge(Ensemble((*zoo.members, other)), blind)


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.5)], 1),  # accuracy first
        ([(0.7, 1.0), (0.7, 0.9), (0.6, 0.1)], 1),  # then the lower NLL
        ([(0.7, 1.0), (0.6, 0.9), (0.7, 1.0)], 0),  # then the first
    ],
)
def test_the_best_member_by_accuracy_then_nll(
    zoo: Ensemble,
    figures: list[tuple[float, float]],
    best: int,
    judging: Callable[..., Bench],
):
    known = {
        hash_state(state): measured(*pair)
        for state, pair in zip(zoo.states(), figures, strict=True)
    }
    merged = BestMember().merge(zoo, judging(lambda m: known[hash_state(m.state)]))
    assert hash_state(merged.state) == hash_state(zoo.members[best].state())
    assert merged.info == zoo.members[best].info


def test_the_best_member_may_be_of_any_architecture(
    zoo: Ensemble,
    make_member: Callable[..., Member],
    judging: Callable[..., Bench],
):
    other = make_member(zoo.members[0].path.with_name("3.safetensors"), 3)
    mixed = Ensemble((*zoo.members, other))
    merged = BestMember().merge(
        mixed,
        judging(lambda m: measured(float(m.info.architecture == "mlp,width=8"), 1)),
    )
    assert merged.info.architecture == "mlp,width=8"
    assert not BestMember.stale_statistics
