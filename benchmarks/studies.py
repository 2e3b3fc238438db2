"""Loads a study's module by name, so that studies share what they measure with."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def load(study: str, module: str) -> ModuleType:
    """Return ``benchmarks/STUDY/MODULE.py`` as a module."""
    name = f"{study}_{module}"
    if name in sys.modules:
        return sys.modules[name]
    path = HERE / study / f"{module}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
