from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.core.states import load_state, save_state
from metaensemble.metrics import accuracy, brier, nll
from metaensemble.report.predictions import (
    MODELS,
    Answers,
    Predictions,
    load_predictions,
    save_predictions,
)

Predicted = Callable[..., Predictions]


def test_predictions_survive_the_round_trip(predicted: Predicted, tmp_path: Path):
    before = predicted()
    save_predictions(tmp_path / "p.safetensors", before)
    after = load_predictions(tmp_path / "p.safetensors")
    assert (after.data, after.classes, after.images, after.student_sha256) == (
        before.data,
        before.classes,
        before.images,
        before.student_sha256,
    )
    assert after.labels.equal(before.labels)
    for name in MODELS:
        for field in ("decision", "confidence", "label", "brier"):
            one = getattr(after.models[name], field)
            assert one.equal(getattr(before.models[name], field))


def test_equal_predictions_are_equal_bytes(predicted: Predicted, tmp_path: Path):
    for name in ("a.safetensors", "b.safetensors"):
        save_predictions(tmp_path / name, predicted())
    first, second = (tmp_path / f"{n}.safetensors" for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_the_metrics_follow_from_the_answers(predicted: Predicted):
    labels = torch.randint(5, (64,), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    log_probs = logits.log_softmax(-1)
    found = replace(
        predicted(), labels=labels, models={"student": Answers.of(log_probs, labels)}
    )
    mean = float(found.right("student").mean())
    assert mean == pytest.approx(accuracy(log_probs, labels))
    assert float(found.nll("student").mean()) == pytest.approx(nll(log_probs, labels))
    assert float(found.brier("student").mean()) == pytest.approx(
        brier(log_probs, labels), rel=1e-6
    )


def broken(kind: str, path: Path) -> None:
    state, metadata = load_state(path)
    assert metadata is not None
    if kind == "another format":
        metadata["predictions"] = 2
    elif kind == "no metadata":
        metadata = {}
    elif kind == "a tensor is missing":
        del state["ensemble.brier"]
    elif kind == "lengths differ":
        state["labels"] = state["labels"][1:]
    elif kind == "a label beyond the classes":
        state["labels"][0] = 9
    elif kind == "fractions as labels":
        state["labels"] = state["labels"].float()
    elif kind == "classes are no names":
        metadata["classes"] = [0, 1]
    save_state(path, state, metadata)


@pytest.mark.parametrize(
    "kind",
    [
        "another format",
        "no metadata",
        "a tensor is missing",
        "lengths differ",
        "a label beyond the classes",
        "fractions as labels",
        "classes are no names",
    ],
)
def test_what_holds_no_predictions_is_refused(
    predicted: Predicted, tmp_path: Path, kind: str
):
    path = tmp_path / "p.safetensors"
    save_predictions(path, predicted())
    broken(kind, path)
    with pytest.raises(InputError, match="must hold predictions of format 1, but does"):
        load_predictions(path)
