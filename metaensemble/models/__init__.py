"""Networks by name or import path, and the care of their batch norm statistics."""

from metaensemble.models.architecture import (
    Architecture,
    build,
    describe_architectures,
    init_model,
)
from metaensemble.models.batchnorm import has_batchnorm, reestimate_batchnorm
from metaensemble.models.shapes import InputShape

__all__ = [
    "Architecture",
    "InputShape",
    "build",
    "describe_architectures",
    "has_batchnorm",
    "init_model",
    "reestimate_batchnorm",
]
