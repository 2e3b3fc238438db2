"""Processes that agree, add up and notice when one is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaensemble.core.distributed import ALONE, World, current_world, joined
from metaensemble.core.errors import InputError

TWO = """
import os, sys
import torch
from metaensemble.core import distributed
from metaensemble.core.distributed import LostProcessError, ToldError, joined
from metaensemble.core.errors import InputError

distributed.CHUNK = 5  # several messages for few numbers
with joined() as world:
    rank = world.rank
    assert (world.size, world.first) == (2, rank == 0)
    assert world.agreed(lambda: {"rank": rank}) == {"rank": 0}

    def refused():
        raise InputError("bad input")

    try:
        world.agreed(refused)
    except InputError as error:
        assert str(error) == "bad input"
        assert isinstance(error, ToldError) == (rank == 1)

    tensors = [
        torch.full((2, 2), 1.0 + rank),
        torch.full((3,), 10.0 * rank),
        torch.tensor(0.5, dtype=torch.float64),
        torch.arange(6.0).reshape(2, 3).t(),
    ]
    world.add_up(tensors)
    assert tensors[0].tolist() == [[3, 3], [3, 3]]
    assert tensors[1].tolist() == [10, 10, 10]
    assert tensors[2].item() == 1 and tensors[2].dtype == torch.float64
    assert tensors[3].tolist() == [[0, 6], [2, 8], [4, 10]]

    weight = torch.nn.Parameter(torch.full((2, 3), float(rank)).t())
    count = torch.tensor(7 + rank)
    world.copy_first([weight, count])
    assert weight.eq(0).all() and count.item() == 7
    world.wait()
    if rank == 1:
        os._exit(9)
    try:
        world.wait()
    except LostProcessError as error:
        assert "another process of this run is gone" in str(error)
        os._exit(5)
"""


def test_alone_everything_is_the_work_itself():
    assert current_world() == ALONE
    assert ALONE.first
    assert ALONE.agreed(lambda: 3) == 3
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    tensor = torch.ones(2)
    ALONE.add_up([tensor])
    ALONE.copy_first([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1]
    with joined() as world:
        assert world is ALONE
    with pytest.raises(InputError, match="bad"):
        ALONE.agreed(_bad)


def test_shares_are_disjoint_and_all():
    shares = [World(rank, 3).share(list(range(8))) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_two_processes(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    port = 20_000 + os.getpid() % 20_000
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [5, 9], errors


def _bad() -> int:
    raise InputError("bad")
