import time

import pytest

from metaensemble.export import FORMATS, alternated_ms, latencies
from metaensemble.export.latency import TURNS, WARMUP


def test_slower_work_takes_longer():
    calls = [lambda: None, lambda: time.sleep(0.002)]
    fast, slow = alternated_ms(calls, seconds=0.1)
    assert min(slow) >= 2
    assert min(fast) < 0.1


def test_every_call_is_made_in_turn_and_equally_often():
    made = []
    calls = [
        lambda: made.append("a") or time.sleep(0.003),
        lambda: made.append("b") or time.sleep(0.003),
    ]
    found = alternated_ms(calls, seconds=0.05)
    fewest, _ = TURNS
    assert [len(times) for times in found] == [fewest, fewest]
    warm = 1 + WARMUP
    assert (
        made
        == ["a"] * warm + ["b"] * warm + (["a", "b", "b", "a"] * fewest)[: 2 * fewest]
    )


def test_an_ensemble_takes_as_long_as_its_members(make_member, tmp_path):
    members = [make_member(tmp_path / f"{i}.safetensors", i) for i in range(5)]
    path = tmp_path / "unused"
    found = latencies(members[0], members[1:], "safetensors", path)
    assert found.keys() == {"torch"}
    assert found["torch"]["ratio"] == pytest.approx(1 / 4, abs=0.1)
    alone = latencies(members[0], [], "safetensors", path)
    assert alone["torch"].keys() == {"student"}


def test_every_format_has_its_own_ending():
    assert len({info.suffix for info in FORMATS.values()}) == len(FORMATS)
