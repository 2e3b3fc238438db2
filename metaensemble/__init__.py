"""Turn an ensemble of trained networks into one deployable network.

>>> import metaensemble as me
>>> data = me.load_data("digits", limit_train=300)
>>> ensemble = me.load_ensemble(["zoo"], data=data)
>>> fused = me.fuse(ensemble, data, "kd")
>>> fused.report.student.test.accuracy, fused.network

The names below load on first use, so that ``metaensemble --help`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaensemble import merging as merging
    from metaensemble import methods as methods
    from metaensemble.api import Fused as Fused
    from metaensemble.api import evaluate as evaluate
    from metaensemble.api import export_model as export_model
    from metaensemble.api import fuse as fuse
    from metaensemble.api import load_ensemble as load_ensemble
    from metaensemble.data import load_data as load_data

_HOMES = {
    "Fused": "metaensemble.api",
    "evaluate": "metaensemble.api",
    "export_model": "metaensemble.api",
    "fuse": "metaensemble.api",
    "load_ensemble": "metaensemble.api",
    "load_data": "metaensemble.data",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("methods", "merging"):
        return import_module(f"metaensemble.{name}")
    raise AttributeError(f"module 'metaensemble' has no attribute {name!r}")
