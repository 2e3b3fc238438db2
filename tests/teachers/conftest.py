from collections.abc import Callable
from pathlib import Path

import pytest

from metaensemble.teachers import Ensemble, Member, load_ensemble


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Three independent members."""
    paths = [
        make_member(tmp_path / "zoo" / f"{seed}.safetensors", seed).path
        for seed in range(3)
    ]
    return load_ensemble(paths)
