"""What student, ensemble and best member say to every test image, on disk.

A few numbers per model and image, not its whole row of probabilities: so the file of
50,000 images takes 3 MB whatever the number of classes, and no rounding changes a
decision. From it `compare` takes intervals that are paired image by image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.states import load_state, save_state
from metaensemble.metrics import brier_each

FOLDER = "predictions"
"""Of a run, for one file per student; not beside it, where members are looked for."""
FORMAT = 1
MODELS = ("student", "ensemble", "best_member")


@dataclass(frozen=True)
class Answers:
    """What one model says to every image."""

    decision: Int64[Tensor, " images"]
    """The class of the highest probability."""
    confidence: Float[Tensor, " images"]
    """The log-probability of that class."""
    label: Float[Tensor, " images"]
    """The log-probability of the right class."""
    brier: Float[Tensor, " images"]
    """Squared error of the probabilities, summed over classes."""

    @classmethod
    def of(
        cls,
        log_probs: Float[Tensor, "images classes"],
        labels: Int64[Tensor, " images"],
    ) -> "Answers":
        """Return the answers of a model with these log-probabilities."""
        confidence, decision = log_probs.float().max(dim=1)
        label = log_probs.float().gather(1, labels[:, None]).squeeze(1)
        brier = brier_each(log_probs, labels)
        return cls(decision, confidence, label, brier.clamp_min(0).float())


@dataclass(frozen=True)
class Predictions:
    """The answers of student, ensemble and best member to the test images."""

    data: str
    """Name of the data."""
    classes: tuple[str, ...]
    images: str
    """Fingerprint of the test images and their order."""
    student_sha256: str | None
    """Of the student's file."""
    labels: Int64[Tensor, " images"]
    models: Mapping[str, Answers]
    """By `MODELS`."""

    def right(self, model: str) -> Float[Tensor, " images"]:
        """Return 1 for each image that a model decides rightly, else 0; as float64."""
        return (self.models[model].decision == self.labels).double()

    def nll(self, model: str) -> Float[Tensor, " images"]:
        """Return a model's negative log-probability of each label, as float64."""
        return -self.models[model].label.double()

    def brier(self, model: str) -> Float[Tensor, " images"]:
        """Return a model's Brier score of each image, as float64."""
        return self.models[model].brier.double()


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as a safetensors file, whole or not at all."""
    state = {"labels": predictions.labels.int()}
    for name, answers in predictions.models.items():
        state[f"{name}.decision"] = answers.decision.int()
        for field in ("confidence", "label", "brier"):
            state[f"{name}.{field}"] = getattr(answers, field)
    metadata = {
        "predictions": FORMAT,
        "data": predictions.data,
        "classes": list(predictions.classes),
        "images": predictions.images,
        "student_sha256": predictions.student_sha256,
    }
    save_state(path, state, metadata)


def load_predictions(path: Path) -> Predictions:
    """Return what `save_predictions` wrote.

    Raises:
        InputError: the file is broken, or holds something else.
    """
    state, told = load_state(path)
    told = told or {}
    names = {"labels"} | {
        f"{model}.{field}"
        for model in MODELS
        for field in ("decision", "confidence", "label", "brier")
    }
    lengths = {tuple(tensor.shape) for tensor in state.values()}
    whole = (
        told.get("predictions") == FORMAT
        and state.keys() == names
        and len(lengths) == 1
        and len(next(iter(lengths))) == 1
        and _fits(told)
    )
    if not whole or not _whole_numbers(state, len(told["classes"])):
        raise InputError(
            f"{path} must hold predictions of format {FORMAT}, but does not; remove "
            "it (a comparison then has no intervals over test images) or run again"
        )
    return Predictions(
        data=told["data"],
        classes=tuple(told["classes"]),
        images=told["images"],
        student_sha256=told["student_sha256"],
        labels=state["labels"].long(),
        models={
            model: Answers(
                state[f"{model}.decision"].long(),
                *(state[f"{model}.{f}"] for f in ("confidence", "label", "brier")),
            )
            for model in MODELS
        },
    )


def _fits(told: Mapping[str, Any]) -> bool:
    classes = told.get("classes")
    return (
        isinstance(told.get("data"), str)
        and isinstance(told.get("images"), str)
        and isinstance(told.get("student_sha256"), str | None)
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
    )


def _whole_numbers(state: Mapping[str, Tensor], classes: int) -> bool:
    """Return whether labels and decisions are classes, and the rest are fractions."""
    for name, tensor in state.items():
        chosen = name == "labels" or name.endswith(".decision")
        if tensor.dtype != (torch.int32 if chosen else torch.float32):
            return False
        if chosen and not bool(((tensor >= 0) & (tensor < classes)).all()):
            return False
    return bool(len(state["labels"]))
