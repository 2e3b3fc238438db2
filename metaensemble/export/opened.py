"""Exported files as models again, without executing code of theirs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import sha256_of
from metaensemble.core.guards import one_line, parse_json, refuse_irregular
from metaensemble.core.states import METADATA_KEY
from metaensemble.data import ImageData, in_order
from metaensemble.export.deployed import INPUT, OUTPUTS, ExportInfo
from metaensemble.export.formats import FORMATS
from metaensemble.export.onnx import refuse_other_files, runner_of, session_of
from metaensemble.export.verify import BATCH
from metaensemble.teachers.member import class_order, sized_pixels

SUFFIXES = (FORMATS["onnx"].suffix, FORMATS["torch_export"].suffix)
"""Endings of exported files that are no member files."""


@dataclass(frozen=True)
class OnnxModel:
    """An exported ONNX file, ready to run."""

    path: Path
    sha256: str
    info: ExportInfo
    run: Callable[[Tensor], Tensor] = field(repr=False)
    """Pixels float32 (batch, channels, height, width) in [0, 1] to logits."""

    def logits(self, data: ImageData) -> Float[Tensor, "images classes"]:
        """Return its logits for the test images of data, in the data's classes.

        Images of another size are resized, classes matched by name.

        Raises:
            InputError: it has other classes or channels, or fails to run.
        """
        names = self.info.classes, data.classes
        order = class_order(*names, str(self.path), data.name)
        channels = self.info.input_shape[0]
        if channels != data.input_shape[0]:
            raise InputError(
                f"models and data must agree on the channels, but {self.path} takes "
                f"{channels} and {data.name} has {data.input_shape[0]}; "
                "choose other data"
            )
        rows, size = [], self.info.input_shape[1:]
        for indices in in_order(data.test, BATCH):
            pixels = sized_pixels(data.test.batch(indices), size).contiguous()
            try:
                rows.append(self.run(pixels))
            except Exception as error:  # the runtime has its own types
                raise _refusal(self.path, one_line(error)) from error
        logits = torch.cat(rows)
        if logits.shape != (len(data.test), len(self.info.classes)):
            raise _refusal(self.path, f"its logits are {tuple(logits.shape)}")
        return logits if order is None else logits[:, list(order)]


def open_onnx(path: Path) -> OnnxModel:
    """Return the model in a file that `export` wrote.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is no ONNX file of ours, or it is a torch.export program, which
            cannot be read without executing code.
    """
    if not path.exists():
        raise MissingFileError(
            f"an exported model must be a file, but {path} does not exist; "
            f"make one with: metaensemble export RUN --out {path}"
        )
    refuse_irregular(path, "an exported model")
    if path.suffix != ".onnx":
        raise InputError(
            f"models are read without executing code, but {path} is a torch.export "
            "program, which torch unpickles; name its .onnx or .safetensors export"
        )
    content = path.read_bytes()
    try:
        refuse_other_files(content)
        session = session_of(content)
        record = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
        names = [INPUT], list(OUTPUTS)
        found = [
            [value.name for value in values]
            for values in (session.get_inputs(), session.get_outputs())
        ]
    except InputError:
        raise
    except Exception as error:  # the runtime has its own types
        raise _refusal(path, one_line(error)) from error
    if found != list(names):
        raise _refusal(path, f"its inputs and outputs are {found}")
    try:
        info = ExportInfo.model_validate(parse_json(record))
    except (ValidationError, ValueError) as error:
        what = f"its metadata {METADATA_KEY!r} are not a record ({one_line(error)})"
        raise _refusal(path, what) from error
    return OnnxModel(path, sha256_of(path), info, runner_of(session))


def _refusal(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} must be an ONNX file that metaensemble export wrote, but is not "
        f"({why}); export the student again"
    )
