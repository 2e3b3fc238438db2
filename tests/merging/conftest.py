"""Benches for mergers: one that sees nothing, one with a given judge, a real one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from metaensemble.data import ImageData
from metaensemble.engine import RunLog
from metaensemble.merging import Bench, Judged, Merged, Merger
from metaensemble.metrics import Measured
from metaensemble.teachers import Ensemble, OutputCache
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import bench_of


@pytest.fixture
def judging(digits: ImageData, tmp_path: Path) -> Callable[..., Bench]:
    """Make a bench of a function from candidates to their figures."""

    def make(judge: Callable[[Merged], Measured]) -> Bench:
        cache = OutputCache(tmp_path / "cache")
        return Bench(digits, lambda merged: Judged(judge(merged), 0.0), cache)

    return make


@pytest.fixture
def blind(judging: Callable[..., Bench]) -> Bench:
    """A bench for mergers that look at no labels."""

    def refuse(_: Merged) -> Measured:
        raise AssertionError("this merger looks at no labels")

    return judging(refuse)


@pytest.fixture
def real_bench(tmp_path: Path) -> Callable[[ImageData, Ensemble, Merger], Bench]:
    """Make the bench that a command would give a merger."""

    def make(data: ImageData, members: Ensemble, method: Merger) -> Bench:
        options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
        session = open_session(options, data, None, RunLog(quiet=True))
        return bench_of(session, members, method)

    return make
