"""What is exported: a network with its normalisation inside, and its record."""

from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor, nn

from metaensemble.core.config import Config
from metaensemble.data import Normalization
from metaensemble.teachers import Member

INPUT = "pixels"
"""float32 (batch, channels, height, width) in [0, 1]."""
OUTPUTS = ("logits", "probabilities")
"""float32 (batch, classes) each; a softmax lies between them."""


class ExportInfo(Config):
    """What an exported file says about itself, as JSON under the key `metaensemble`."""

    schema_version: Literal[1] = 1
    """Version of this record."""
    architecture: str
    """Canonical text of the architecture."""
    classes: tuple[str, ...]
    """Class names in the order of the outputs."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    normalization: Normalization
    """What is done inside to pixels in [0, 1]; not to be done again."""
    student_sha256: str
    """Of the member file that was exported."""
    versions: dict[str, str]
    """Of metaensemble and torch."""


class Deployed(nn.Module):
    """Pixels in, logits and probabilities out; normalisation and softmax inside.

    A temperature needs no place: `fuse --calibrate` folds it into the last layer.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor([normalization.mean, normalization.std])
        self.register_buffer("scale", (1 / std)[None, :, None, None])
        self.register_buffer("shift", (-mean / std)[None, :, None, None])
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities (batch, classes).

        Args:
            pixels: float32 (batch, channels, height, width) in [0, 1].
        """
        logits = self.network(pixels * self.scale + self.shift)
        return logits, logits.softmax(-1)


def deployed(member: Member) -> Deployed:
    """Return a member's network as it is exported."""
    return Deployed(member.network(), member.info.normalization)


def info_of(member: Member) -> ExportInfo:
    """Return the record of a member's export."""
    info = member.info
    return ExportInfo(
        architecture=info.architecture,
        classes=info.classes,
        input_shape=info.input_shape,
        normalization=info.normalization,
        student_sha256=member.sha256,
        versions={
            "metaensemble": version("metaensemble"),
            "torch": torch.__version__,
        },
    )
