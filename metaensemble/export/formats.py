"""The formats of an export: how each is written, and how it is run again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaensemble.core.states import save_state
from metaensemble.export.capture import capture, open_program, write_program
from metaensemble.export.deployed import Deployed, deployed, info_of
from metaensemble.export.onnx import runner_of, session_of, wanted, write_onnx
from metaensemble.teachers import Member, load_member

Format = Literal["onnx", "torch_export", "safetensors"]
"""Name of a format."""
Runner = Callable[[Tensor], Tensor]
"""Pixels float32 (batch, channels, height, width) in [0, 1] to logits."""


@dataclass(frozen=True)
class FormatInfo:
    """What is to be known of a format."""

    suffix: str
    """How its files' names end."""
    runtime: str
    """What runs them."""


FORMATS: dict[Format, FormatInfo] = {
    "onnx": FormatInfo(".onnx", "ONNX Runtime"),
    "torch_export": FormatInfo(".pt2", "torch.export"),
    "safetensors": FormatInfo(".safetensors", "PyTorch"),
}
"""Format to what is to be known of it."""


def write_export(format: Format, path: Path, member: Member) -> None:
    """Write a member's network in a format.

    ``safetensors`` holds a member file: the network's own tensors, and a record whose
    ``training`` tells what was exported by which versions.

    Args:
        format: one of `FORMATS`.
        path: any name; replaced where it exists.
        member: what is exported.

    Raises:
        InputError: the network cannot be expressed in the format.
    """
    info = info_of(member)
    if format == "safetensors":
        exported = {"exported": info.student_sha256, "versions": info.versions}
        update: dict[str, Any] = {"training": exported, "metrics": {}}
        record = member.info.model_copy(update=update)
        state = member.network().state_dict()
        save_state(path, state, record.model_dump(mode="json"))
        return
    network = deployed(member)
    if format == "onnx":
        write_onnx(path, network, info)
    else:
        write_program(path, capture(network, info.input_shape), info)


def open_written(format: Format, path: Path, architecture: str) -> Runner:
    """Return what runs a file that `write_export` just wrote.

    Args:
        format: as it was written.
        path: of the file.
        architecture: of the network, for ``safetensors``, which holds no graph.
    """
    if format == "onnx":
        return runner_of(session_of(path.read_bytes()))
    if format == "torch_export":
        return open_program(path)
    member = load_member(path, architecture=architecture)
    return runner_in_torch(deployed(member))


def runner_in_torch(network: Deployed) -> Runner:
    """Return what runs a network in PyTorch."""

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(pixels)[0]

    return run


def runtime_version(format: Format) -> str:
    """Return the name and version of what runs a format's files."""
    versions = torch.__version__
    if format == "onnx":
        versions = wanted("onnxruntime").__version__
    return f"{FORMATS[format].runtime} {versions}"
