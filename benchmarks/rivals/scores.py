"""Accuracy, top-5, NLL, Brier score and ECE of the same logits.

A case's folder holds logits.safetensors: float32 (examples, classes) and int64 labels.
Every tool starts from the logits. Memory and seconds are of the whole set at once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rows import Row, absent, measured, row
from worker import main, timed

CASES = {"10,000 x 10": (10_000, 10), "50,000 x 1000": (50_000, 1000)}
BINS = 15
SAME = 1e-6
"""Figures, fractions or a few nats, are the same up to this: float32."""
REPEATS = 3
LARGE = 10_000_000
"""Logits, above which a process measures once; below, the median of three."""


def _logits(folder: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    torch.manual_seed(0)
    tensors = load_file(folder / "logits.safetensors")
    return tensors["logits"], tensors["labels"]


def ours(folder: Path) -> dict[str, Any]:
    from metaensemble.metrics import brier, expected_calibration_error, measure, nll

    logits, labels = _logits(folder)

    def everything() -> dict[str, float]:
        return measure(logits.log_softmax(1), labels).model_dump(exclude={"count"})

    def proper() -> tuple[float, float, float]:
        scores = logits.log_softmax(1)
        ece = expected_calibration_error(scores, labels)
        return brier(scores, labels), ece, nll(scores, labels)

    return _figures(logits, {"seconds": everything, "proper_seconds": proper})


def torchmetrics(folder: Path) -> dict[str, Any]:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )
    from torchmetrics.functional.classification.calibration_error import _ce_compute
    from torchmetrics.functional.text import perplexity

    logits, labels = _logits(folder)
    classes = logits.shape[1]

    def everything(checks: bool = True) -> dict[str, float]:
        own: dict[str, Any] = {"num_classes": classes, "validate_args": checks}
        top = {k: min(k, classes) for k in (1, 5)}
        accuracy, top5 = (
            multiclass_accuracy(logits, labels, average="micro", top_k=top[k], **own)
            for k in (1, 5)
        )
        ece = multiclass_calibration_error(logits, labels, n_bins=BINS, **own)
        # no cross-entropy for classes: the logarithm of its perplexity of texts
        nll = perplexity(logits[None], labels[None]).log()
        values = {"accuracy": accuracy, "top5": top5, "ece": ece, "nll": nll}
        return {name: float(value) for name, value in values.items()}

    calls = {"seconds": everything, "unchecked_seconds": lambda: everything(False)}
    # It goes back to float32 whatever it is given; so its inner formula is asked, too.
    confidence, decision = logits.softmax(1).max(1)
    precise = _ce_compute(confidence.double(), (decision == labels).double(), BINS)
    return {**_figures(logits, calls), "ece_float64": float(precise)}


def torch_uncertainty(folder: Path) -> dict[str, Any]:
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # The registry's build is for CUDA and loads no operators beside PyTorch's for
        # the CPU; the metrics need none, but importing them asks for these two.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    from torch_uncertainty.metrics import BrierScore, CalibrationError, CategoricalNLL

    logits, labels = _logits(folder)
    classes = logits.shape[1]

    def proper() -> dict[str, float]:
        probabilities = logits.softmax(1)
        metrics = {
            "brier": BrierScore(num_classes=classes),
            "ece": CalibrationError(
                task="multiclass", num_classes=classes, num_bins=BINS
            ),
            "nll": CategoricalNLL(),
        }
        found = {}
        for name, metric in metrics.items():
            metric.update(probabilities, labels)
            found[name] = float(metric.compute())
        return found

    return _figures(logits, {"proper_seconds": proper})


def _figures(logits: Any, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return seconds by name, and the values that the first call returned."""
    found: dict[str, Any] = {}
    for name, call in calls.items():
        found[name], values = timed(call, 1 if logits.numel() > LARGE else 3)
        found.setdefault("values", values)
    return found


def prepare(name: str, folder: Path) -> None:
    """Write logits that are right in some cases and too sure of it."""
    import torch
    from safetensors.torch import save_file

    from metaensemble.core.seeds import generator

    examples, classes = CASES[name]
    random = generator(name, "rivals")
    labels = torch.randint(classes, (examples,), generator=random)
    logits = 2 * torch.randn(examples, classes, generator=random)
    sure = 4 * torch.rand(examples, generator=random) * classes**0.25
    logits[torch.arange(examples), labels] += sure
    save_file({"logits": logits, "labels": labels}, folder / "logits.safetensors")


FLOAT32 = (
    "ece: both rivals add up in float32, ours in float64; torchmetrics' own formula "
    "on confidences in float64 gives our value (`theirs_in_float64` in the report)."
)
VALUES = {
    "torchmetrics": ("accuracy", "top5", "nll", "ece"),
    "torch-uncertainty": ("brier", "nll", "ece"),
}
"""What is compared, by rival."""


def rows(rig: Any) -> Iterator[Row]:
    """Yield the rows of both rivals, on the same logits."""
    for case in CASES:
        folder = rig.folder("scores", case)
        prepare(case, folder)
        for name in VALUES:
            try:
                rival = rig.rival(name)
                ours, theirs = rig.turns("scores", folder, rival, REPEATS)
            except RuntimeError as error:
                yield absent(name, "", str(error))
                continue
            yield from _beside(case, rival, ours, theirs)
        rig.empty(folder)


def _beside(case: str, rival: Any, ours: list[Any], theirs: list[Any]) -> Iterator[Row]:
    head = ("scores", rival.name, rival.version, case)
    for value in VALUES[rival.name]:
        pair = (side[0]["values"][value] for side in (ours, theirs))
        unit = "nats" if value == "nll" else ""
        precise = theirs[0].get("ece_float64") if value == "ece" else None
        more = {} if precise is None else {"theirs_in_float64": precise}
        note = FLOAT32 if value == "ece" else ""
        yield row(*head, value, *pair, unit, tolerance=SAME, note=note, **more)
    kinds = [
        (
            "proper_seconds",
            "proper_seconds",
            "processor seconds of Brier score, NLL, ECE",
        )
    ]
    if rival.name == "torchmetrics":
        asked = "processor seconds (ours all five figures, theirs without Brier)"
        kinds = [
            ("seconds", "seconds", asked),
            ("seconds", "unchecked_seconds", "... theirs without checks of arguments"),
        ]
    for own, its, quantity in kinds:
        runs = ([run[own] for run in ours], [run[its] for run in theirs])
        yield measured(*head, quantity, *runs, "s")
    runs = ([run["peak_mb"] for run in side] for side in (ours, theirs))
    yield measured(*head, "peak resident memory of the process", *runs, "MB")


if __name__ == "__main__":
    main(
        {
            "metaensemble": ours,
            "torchmetrics": torchmetrics,
            "torch-uncertainty": torch_uncertainty,
        }
    )
