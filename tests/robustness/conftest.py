"""The harness, which both the tests and the study use."""

from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fuzz(script) -> ModuleType:
    return script(HERE / "fuzz.py")
