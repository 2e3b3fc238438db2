"""The card: what the hub and a reader find, and that no name can break out of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metaensemble.core.errors import InputError
from metaensemble.data import Normalization
from metaensemble.models import init_model
from metaensemble.report import Report
from metaensemble.report.card import refuse_license, write_card
from metaensemble.report.intervals import intervals_of, per_class
from metaensemble.report.predictions import Predictions
from metaensemble.teachers import MemberInfo, save_member

Make = Callable[..., Report]


def test_the_card_has_readable_front_matter(make: Make, tmp_path: Path):
    write_card(tmp_path / "card.md", make(notes=["a note"]))
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "unknown"
    assert front["tags"] == ["metaensemble", "ensemble", "kd"]
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert metric == {"type": "accuracy", "value": 0.96}
    assert front["metrics"] == [
        m["type"] for m in front["model-index"][0]["results"][0]["metrics"]
    ]
    assert "a0" * 32 in text
    assert "- a note" in text
    assert "$" not in text


@pytest.fixture
def record() -> MemberInfo:
    return MemberInfo(
        architecture="mlp,width=8",
        classes=tuple("abcdefghi"),
        input_shape=(1, 8, 8),
        normalization=Normalization(mean=(0.5,), std=(0.5,)),
    )


def card_of(tmp_path: Path, report: Report, *rest: Any) -> str:
    write_card(tmp_path / "card.md", report, *rest)
    return " ".join((tmp_path / "card.md").read_text(encoding="utf-8").split())


def test_the_card_gives_intervals_and_limits(
    make: Make, tmp_path: Path, predicted: Callable[..., Predictions]
):
    kept = predicted()
    report = make(intervals=intervals_of(kept), per_class=per_class(kept))
    text = card_of(tmp_path, report)
    assert "| student | 0.9600 (0.9390 to 0.9740) |" in text  # Wilson, of 500
    assert "| mean member | 0.9000 |" in text
    assert re.search(r"the student is -2\.0 \(-\d+\.\d to -\d", text)
    assert "weakest on these classes: " in text
    assert "Not tested: other cameras" in text
    assert "intervals" in card_of(tmp_path, make())


def test_the_card_says_how_to_load_the_student(
    make: Make, tmp_path: Path, record: MemberInfo
):
    text = card_of(tmp_path, make(), record)
    assert "images of 8x8 pixels and 1 channel; others must be resized" in text
    assert "in this order: a, b, c, d, e, f, g, h, i." in text
    lines = (tmp_path / "card.md").read_text("utf-8").split("```python\n")[1]
    code = lines.split("```")[0]
    assert len(code.strip().splitlines()) == 3
    network = init_model(record.architecture, 9, record.input_shape, 0)
    save_member(tmp_path / "student.safetensors", network.state_dict(), record)
    code = code.replace("student.safetensors", str(tmp_path / "student.safetensors"))
    names = {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
    exec(code, names)
    probabilities = names["probabilities"]
    assert probabilities.shape == (2, 9)
    assert probabilities.sum(1).tolist() == pytest.approx([1, 1])


def test_a_card_names_its_license(make: Make, tmp_path: Path):
    assert "licence (apache-2.0)" in card_of(tmp_path, make(), None, "apache-2.0")
    front = (tmp_path / "card.md").read_text("utf-8").split("---\n")[1]
    assert yaml.safe_load(front)["license"] == "apache-2.0"


@pytest.mark.parametrize("name", ["", "MIT License", "a: b", "x" * 99, "mit\nother"])
def test_what_is_no_license_is_refused(name: str):
    with pytest.raises(InputError, match="--license must be an identifier in lower"):
        refuse_license(name)


def test_no_name_breaks_out_of_the_card(hostile: Report, tmp_path: Path):
    assert hostile.against_best is not None
    fell = hostile.against_best.model_copy(update={"fallback": True})
    write_card(tmp_path / "card.md", hostile.model_copy(update={"against_best": fell}))
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["tags"][2].startswith("<script")
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", prose)
