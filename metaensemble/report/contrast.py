"""The test images on which student and ensemble differ most, ready for a page."""

import base64
import io
import math
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from metaensemble.data import Split
from metaensemble.report.predictions import Predictions

SHOWN = 12
LARGEST = 160
"""Pixels of a picture's longer side; larger images are reduced."""


@dataclass(frozen=True)
class Contrast:
    """One test image, and what student and ensemble say to it."""

    image: int
    """Its place in the test set."""
    png: str
    """The picture, base64."""
    width: int
    height: int
    label: str
    student: str
    """The class that the student names."""
    student_confidence: float
    ensemble: str
    ensemble_confidence: float
    student_on_label: float
    """The probability that the student gives to the right class."""
    ensemble_on_label: float

    @property
    def alternative(self) -> str:
        """Return what stands for the picture where it is not seen."""
        return f"test image {self.image}, of class {self.label}"


def contrasts(predictions: Predictions, split: Split) -> list[Contrast]:
    """Return the images on which student and ensemble differ most.

    First those to which they give different classes; in either part those whose right
    class gets the most different probabilities.

    Args:
        predictions: for the images of `split`, in their order.
        split: the test images, of one channel or three; of others there is no picture,
            so the list is empty.
    """
    if split.shape[0] not in (1, 3):
        return []
    student, ensemble = predictions.models["student"], predictions.models["ensemble"]
    apart = (student.label.double().exp() - ensemble.label.double().exp()).abs()
    split_decisions = student.decision != ensemble.decision
    rank = apart + split_decisions.double()
    order = torch.argsort(rank, descending=True, stable=True)[:SHOWN]
    order = order[apart[order] > 0]
    if not len(order):
        return []
    rows = []
    for place, pixels in zip(order.tolist(), split.batch(order), strict=True):
        png, (width, height) = _png(pixels)
        rows.append(
            Contrast(
                image=place,
                png=png,
                width=width,
                height=height,
                label=predictions.classes[int(predictions.labels[place])],
                student=predictions.classes[int(student.decision[place])],
                student_confidence=math.exp(float(student.confidence[place])),
                ensemble=predictions.classes[int(ensemble.decision[place])],
                ensemble_confidence=math.exp(float(ensemble.confidence[place])),
                student_on_label=math.exp(float(student.label[place])),
                ensemble_on_label=math.exp(float(ensemble.label[place])),
            )
        )
    return rows


def _png(pixels: UInt8[Tensor, "channels height width"]) -> tuple[str, tuple[int, int]]:
    """Return an image as base64 of a PNG file, and its width and height."""
    values = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    picture = Image.fromarray(values.contiguous().numpy())
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii"), picture.size
