"""Bare members that are not run as they were trained are noticed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metaensemble.data import ImageData, Normalization
from metaensemble.engine import RunLog
from metaensemble.teachers import Ensemble, Member, OutputCache, load_member
from metaensemble.workflows.doubts import doubts
from metaensemble.workflows.options import Session

TURN = [*range(9, -1, -1)]


@pytest.fixture
def doubted(
    tmp_path: Path, digits: ImageData, template_member: Callable[..., Member]
) -> Callable[..., list[str]]:
    """What is said of a bare member that knows 54 digits by heart, told this of it."""

    def say(
        data: ImageData = digits,
        normalization: Normalization | None = None,
        scale: float = 1.0,
        bare: bool = True,
    ) -> list[str]:
        member = template_member(tmp_path / "known.safetensors", scale)
        if bare:
            save_file(member.state(), tmp_path / "a.safetensors")
            member = load_member(
                tmp_path / "a.safetensors",
                architecture="mlp,depth=0",
                data=data,
                normalization=normalization,
            )
        session = Session(data, OutputCache(tmp_path), RunLog(quiet=True))
        return doubts(session, Ensemble((member,)))

    return say


def test_a_member_that_is_right_is_not_doubted(doubted: Callable[..., list[str]]):
    assert doubted() == []


def test_a_better_normalisation_is_named(doubted: Callable[..., list[str]]):
    (said,) = doubted(normalization=Normalization(mean=(0.9,), std=(5.0,)))
    assert said.startswith("a.safetensors is right on ")
    assert "of 54 training images, but on " in said
    assert "% with --normalization " in said
    assert said.endswith("say how images were treated in its training")


def test_another_order_of_the_classes_is_named(
    doubted: Callable[..., list[str]],
    digits: ImageData,
    monkeypatch: pytest.MonkeyPatch,
):
    labels = torch.tensor(TURN)
    train = digits.train.with_labels(labels[digits.train.labels])
    turned = replace(digits, classes=digits.classes[::-1], train=train)
    monkeypatch.setattr("metaensemble.workflows.doubts.PER_CLASS", 2)
    (said,) = doubted(turned)
    names = " ".join(f"'{n}'" for n in range(10))
    assert said.endswith(f"in another order: say which, by --classes {names}")


def test_a_member_that_is_no_better_than_chance_is_named(
    doubted: Callable[..., list[str]],
):
    (said,) = doubted(scale=-1.0)
    assert "training images, where chance makes 10%: check --architecture" in said


def test_what_a_record_says_is_believed(doubted: Callable[..., list[str]]):
    assert doubted(scale=-1.0, bare=False) == []
