"""One network as one file for other runtimes, verified against itself and timed."""

from metaensemble.export.deployed import Deployed, ExportInfo, info_of
from metaensemble.export.formats import (
    FORMATS,
    Format,
    open_written,
    runtime_version,
    write_export,
)
from metaensemble.export.latency import alternated_ms, latencies
from metaensemble.export.opened import SUFFIXES, OnnxModel, open_onnx
from metaensemble.export.verify import TOLERANCE, Verified, random_images, verify

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "TOLERANCE",
    "Deployed",
    "ExportInfo",
    "Format",
    "OnnxModel",
    "Verified",
    "alternated_ms",
    "info_of",
    "latencies",
    "open_onnx",
    "open_written",
    "random_images",
    "runtime_version",
    "verify",
    "write_export",
]
