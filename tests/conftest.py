"""Fixtures for all tests: tiny data, and members that nobody had to train."""

import importlib.util
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metaensemble.core.seeds import generator
from metaensemble.data import ImageData, load_data
from metaensemble.models import init_model
from metaensemble.teachers import Member, MemberInfo, save_member
from metaensemble.teachers.member import start_of

# Networks this small are slower with two threads than with one; with several test
# processes side by side (pytest -n), many times so. Also for commands run as processes.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Load a module that no package holds, such as a study's, by its path.

    As when it is run, it may import its neighbours; other folders' modules may have the
    same names, so none of them stays.
    """

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        before = set(sys.modules)
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).parent == path.parent:
                    del sys.modules[name]
        return module

    return load


@pytest.fixture(scope="session")
def no_file_above() -> Callable[[int], AbstractContextManager[None]]:
    """Let the system refuse, for a while, to make any file larger than a size."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """The digits with 54 images for training and 6 for validation."""
    return load_data("digits", limit_train=60)


@pytest.fixture(scope="session")
def make_member(digits: ImageData) -> Callable[..., Member]:
    """Write an untrained member for `digits`, its weights fixed by the seed.

    With a `start` (a member), it lies a small step away from that one's weights, and
    its record says so.
    """

    def make(
        path: Path,
        seed: int,
        architecture: str = "mlp,width=8",
        start: Member | None = None,
    ) -> Member:
        network = init_model(architecture, digits.num_classes, digits.input_shape, seed)
        if start is not None:
            network.load_state_dict(start.state())
        started_from = start_of(network)
        random = generator(seed, "a little training")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=random)
        info = MemberInfo(
            architecture=architecture,
            classes=digits.classes,
            input_shape=digits.input_shape,
            normalization=digits.normalization,
            start=started_from,
            training={"seed": seed},
        )
        return save_member(path, network.state_dict(), info)

    return make


@pytest.fixture(scope="session")
def template_member(digits: ImageData) -> Callable[..., Member]:
    """Write a member that names the class whose mean image is nearest.

    Its logits are multiplied by `scale`: below 0, it names the farthest.
    """

    def make(path: Path, scale: float = 1.0) -> Member:
        images = digits.normalization(digits.train.batch(torch.arange(54))).flatten(1)
        classes = torch.arange(digits.num_classes)
        means = torch.stack([images[digits.train.labels == c].mean(0) for c in classes])
        state = {
            "fc.weight": scale * means / 10,
            "fc.bias": -scale * means.square().sum(1) / 20,
        }
        info = MemberInfo(
            architecture="mlp,depth=0",
            classes=digits.classes,
            input_shape=digits.input_shape,
            normalization=digits.normalization,
        )
        return save_member(path, state, info)

    return make
