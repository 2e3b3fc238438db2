from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.core.states import State, hash_state
from metaensemble.data import ImageData
from metaensemble.merging import Bench, GreedySoup, Judged, Merged, Merger, uniform_soup
from metaensemble.merging.greedy_soup import Metric, merit
from metaensemble.metrics import Measured
from metaensemble.teachers import Ensemble, Member, OutputCache, save_member

RealBench = Callable[[ImageData, Ensemble, Merger], Bench]
LEVEL = "fc.bias"
"""The tensor whose mean the judges below look at."""


@pytest.fixture
def of_levels(
    tmp_path: Path, make_member: Callable[..., Member]
) -> Callable[..., Ensemble]:
    """Members that differ in one tensor, which is filled with a number each."""

    def make(*levels: float, dtype: torch.dtype = torch.float32) -> Ensemble:
        plain = make_member(tmp_path / "plain.safetensors", 0)
        members = []
        for number, level in enumerate(levels):
            state = {name: tensor.to(dtype) for name, tensor in plain.state().items()}
            state[LEVEL].fill_(level)
            path = tmp_path / f"{number}.safetensors"
            members.append(save_member(path, state, plain.info))
        return Ensemble(tuple(members))

    return make


@pytest.fixture
def family(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Five members with batch norm, near one start."""
    name = "convnet,width=2"
    start = make_member(tmp_path / "start.safetensors", 9, name)
    return Ensemble(
        tuple(
            make_member(tmp_path / f"{seed}.safetensors", seed, name, start)
            for seed in range(5)
        )
    )


def judged(accuracy: float = 0.5, nll: float = 1.0, kl: float = 0.0) -> Judged:
    measured = Measured(accuracy=accuracy, top5=1, nll=nll, brier=0, ece=0, count=10)
    return Judged(measured, kl)


@pytest.fixture
def judging(digits: ImageData, tmp_path: Path) -> Callable[..., Bench]:
    """Make a bench of a function from the level of a candidate to its figures."""

    def make(judge: Callable[[float], Judged]) -> Bench:
        def of(merged: Merged) -> Judged:
            return judge(merged.state[LEVEL].double().mean().item())

        return Bench(digits, of, OutputCache(tmp_path / "cache"))

    return make


def level(merged: Merged) -> float:
    return merged.state[LEVEL].double().mean().item()


@pytest.mark.parametrize(
    ("levels", "wanted", "held"),
    [
        # 1 is right alone; every mean with another is worse
        ([0.0, 1.0, 2.5, 10.0], 1.0, "1 of 4 members (1.safetensors)"),
        # 0.5 is best alone, 1.1 is the mean with 1.7; 9 is too far off
        ([0.5, 1.7, 9.0], 1.1, "2 of 3 members (0.safetensors, 1.safetensors)"),
        # best first, each once: 0.8, then 1.05 with 1.3, then 0.89 with 0.58; not 3
        (
            [3.0, 0.58, 1.3, 0.8],
            (0.8 + 1.3 + 0.58) / 3,
            "3 of 4 members (3.safetensors, 2.safetensors, 1.safetensors)",
        ),
    ],
)
def test_members_that_help_are_averaged(
    levels: list[float],
    wanted: float,
    held: str,
    of_levels: Callable[..., Ensemble],
    judging: Callable[..., Bench],
):
    bench = judging(lambda level: judged(nll=abs(level - 0.95)))
    merged = GreedySoup(metric="nll").merge(of_levels(*levels), bench)
    assert level(merged) == pytest.approx(wanted)
    assert merged.notes[0].startswith(f"the soup holds {held}; nll on validation ")


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_copies_of_a_network_merge_to_that_network_bit_for_bit(
    family: Ensemble, copies: int, judging: Callable[..., Bench]
):
    bench = judging(lambda _: judged())
    one = family.members[0]
    merged = GreedySoup().merge(Ensemble((one,) * copies), bench)
    assert hash_state(merged.state) == hash_state(one.state())
    assert f"holds {copies} of {copies} members" in merged.notes[0]


def test_where_all_help_it_is_the_uniform_soup(
    family: Ensemble, digits: ImageData, tmp_path: Path
):
    improving = iter(range(1, 20))

    def ever_better(_: Merged) -> Judged:
        return judged(nll=1 / next(improving))

    bench = Bench(digits, ever_better, OutputCache(tmp_path / "cache"))
    merged = GreedySoup(metric="nll").merge(family, bench)
    for name, tensor in uniform_soup(family.states()).items():
        torch.testing.assert_close(merged.state[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "kl"])
def test_the_order_of_the_members_is_of_no_account(
    metric: Metric, family: Ensemble, digits: ImageData, real_bench: RealBench
):
    method = GreedySoup(metric=metric)
    bench = real_bench(digits, family, method)
    first = method.merge(family, bench)
    again = method.merge(family.subset([3, 0, 4, 2, 1]), bench)
    assert hash_state(first.state) == hash_state(again.state)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "kl"])
def test_the_held_out_figure_is_never_below_the_best_alone(
    metric: Metric, family: Ensemble, digits: ImageData, real_bench: RealBench
):
    method = GreedySoup(metric=metric)
    bench = real_bench(digits, family, method)

    def value(state: State) -> tuple[float, ...]:
        return merit(bench.judge(Merged(state, family.info)), metric)

    alone = [value(state) for state in family.states()]
    assert value(method.merge(family, bench).state) >= max(alone)


def test_the_soup_of_all_where_the_search_misses_it(
    of_levels: Callable[..., Ensemble], judging: Callable[..., Bench]
):
    # Each of the others makes 0 worse, but all together make 0 again.
    exact = {0.0: 0.2, 0.5: 0.9, -0.5: 0.9, 1.0: 1.0, -1.0: 1.0}
    seen: list[float] = []

    def judge(level: float) -> Judged:
        seen.append(level)
        return judged(nll=0.1 if len(seen) == 6 else exact[level])

    merged = GreedySoup(metric="nll").merge(of_levels(0.0, 1.0, -1.0), judging(judge))
    assert seen == [0.0, 1.0, -1.0, 0.5, -0.5, 0.0]
    assert "the soup holds 3 of 3 members" in merged.notes[0]


def test_a_merit_is_the_greater_the_better():
    figures = judged(accuracy=0.7, nll=0.4, kl=0.1)
    assert merit(figures, "accuracy") == (0.7, -0.4)
    assert merit(figures, "nll") == (-0.4,)
    assert merit(figures, "kl") == (-0.1,)


@pytest.mark.parametrize(
    ("ties", "nll", "held"),
    [
        ("nll", 0.9, 2),
        ("nll", 1.0, 2),
        ("nll", 1.1, 1),
        ("add", 1.1, 2),
        ("skip", 0.9, 1),
    ],
)
def test_ties_of_accuracy(
    ties: str,
    nll: float,
    held: int,
    of_levels: Callable[..., Ensemble],
    judging: Callable[..., Bench],
):
    # members have NLL 1, their mean has another; accuracies are equal
    bench = judging(lambda level: judged(nll=nll if level == 0.5 else 1.0))
    method = GreedySoup.model_validate({"metric": "accuracy", "ties": ties})
    merged = method.merge(of_levels(0.0, 1.0), bench)
    assert f"the soup holds {held} of 2" in merged.notes[0]


def test_a_gain_in_accuracy_outweighs_the_nll(
    of_levels: Callable[..., Ensemble], judging: Callable[..., Bench]
):
    bench = judging(
        lambda level: judged(accuracy=0.5 + (level == 0.5) / 10, nll=1.0 + level)
    )
    merged = GreedySoup(metric="accuracy", ties="skip").merge(
        of_levels(0.0, 1.0), bench
    )
    assert level(merged) == 0.5


def test_half_precision_does_not_stall(
    of_levels: Callable[..., Ensemble], judging: Callable[..., Bench]
):
    # In bfloat16, the mean of 1 and 1 + 2**-7 is 1.
    levels = [1.0] + [1 + 2.0**-7] * 7
    members = of_levels(*levels, dtype=torch.bfloat16)
    merged = GreedySoup(metric="nll").merge(members, judging(lambda _: judged()))
    assert level(merged) == pytest.approx(sum(levels) / 8, abs=1e-6)


def test_progress_names_what_was_added(
    of_levels: Callable[..., Ensemble], digits: ImageData, tmp_path: Path
):
    lines: list[str] = []
    bench = Bench(
        digits,
        lambda merged: judged(nll=abs(level(merged))),
        OutputCache(tmp_path / "cache"),
        say=lines.append,
    )
    GreedySoup(metric="nll").merge(of_levels(1.0, 2.0, -1.5), bench)
    assert lines == [
        "greedy soup, 2 of 3: 2.safetensors added",
        "greedy soup, 3 of 3: 1.safetensors left out",
    ]
