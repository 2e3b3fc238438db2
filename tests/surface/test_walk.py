"""The walk of the README: three checkpoints of one's own, to the page and to ONNX."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metaensemble.cli import main
from metaensemble.data import ImageData, load_data
from metaensemble.report import read_report

SOURCE = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()

def net(num_classes):
    stem = nn.Conv2d(3, 6, 3, padding=1)
    head = nn.Linear(6, num_classes)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(stem, Block(6), pool, nn.Flatten(), nn.Dropout(0.1), head)
"""
CLASSES = ("grüner Ball", "rote Box", "sky blue")
TREATED = "--image-size 12 --normalization 0.2,0.2,0.2/0.1,0.1,0.1"
Say = Callable[[str], str]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it: network, checkpoints, images of odd sizes."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "mynets.py").write_text(SOURCE)
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for channel, name in enumerate(CLASSES):
            inside = folder / "images" / split / name
            inside.mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(12, 20, 2)
                pixels = random.integers(0, 160, (height, width, 3))
                pixels[..., (1, 0, 2)[channel]] += 20
                suffix = "png" if number % 2 else "jpg"
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(inside / f"{number}.{suffix}")
    data = load_data(folder / "images", image_size=12)
    states = [trained(data, seed) for seed in range(3)]
    torch.save(states[0], folder / "a.pt")
    wrapped = {f"module.{name}": tensor for name, tensor in states[1].items()}
    torch.save({"state_dict": wrapped, "epoch": 3, "optimizer": {}}, folder / "b.pth")
    held = {f"model.{name}": tensor.half() for name, tensor in states[2].items()}
    torch.save({"state_dict": held}, folder / "c.ckpt")
    return folder


def trained(data: ImageData, seed: int) -> dict[str, Tensor]:
    """The state of a network after a moment of training, as its owner treats images."""
    torch.manual_seed(seed)
    space: dict[str, Callable[..., nn.Module]] = {}
    exec(SOURCE, space)
    network = space["net"](num_classes=3)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    images = (data.train.batch(torch.arange(len(data.train))) / 255 - 0.2) / 0.1
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(images), data.train.labels).backward()
        optimizer.step()
    return network.state_dict()


@pytest.fixture
def say(
    walk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Say:
    """Run a command in that folder; it must succeed. Return what it showed."""
    monkeypatch.chdir(walk)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(walk / "cache"))
    monkeypatch.delitem(sys.modules, "mynets", raising=False)

    def run(line: str) -> str:
        assert main(line.split()) == 0, capsys.readouterr().err
        return " ".join(capsys.readouterr().out.split())

    return run


MEMBERS = "a.pt b.pth c.ckpt --architecture mynets:net --data images"


def test_from_three_checkpoints_to_page_and_onnx(say: Say, walk: Path):
    pytest.importorskip("onnxruntime")
    said = say(f"fuse {MEMBERS} {TREATED} --method kd --epochs 4 --out run")
    assert "warning" not in said
    deploy = "metaensemble export run --format onnx --out student.onnx"
    assert f"{deploy} --architecture mynets:net" in said
    page = (walk / "run" / "page.html").read_text(encoding="utf-8")
    report = read_report(walk / "run")
    assert report.verdict is not None
    assert all(name in page for name in CLASSES)
    assert min(teacher.test.accuracy for teacher in report.teachers) > 0.9

    said = say(deploy.removeprefix("metaensemble ") + " --architecture mynets:net")
    assert "30 test images of images" in said
    assert "0 decisions are unequal" in said
    say("evaluate student.onnx --data images --image-size 12 --json served.json")
    served = json.loads((walk / "served.json").read_text())["models"][0]["test"]
    assert served["accuracy"] == report.student.test.accuracy
    assert served["nll"] == pytest.approx(report.student.test.nll, abs=1e-4)


@pytest.mark.parametrize(
    ("treated", "warning"),
    [
        (
            "--image-size 12 --normalization 0.9,0.9,0.9/5,5,5",
            "% with --normalization ",
        ),
        (
            f"{TREATED} --classes sky~blue grüner~Ball rote~Box",
            "--classes 'grüner Ball' 'rote Box' 'sky blue'",
        ),
    ],
)
def test_what_bare_checkpoints_do_not_say_is_doubted(
    say: Say,
    walk: Path,
    treated: str,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("metaensemble.workflows.doubts.GOOD", 1.0)
    words = [word.replace("~", " ") for word in f"{MEMBERS} {treated}".split()]
    out = walk / f"doubted{len(words)}"
    line = ["fuse", *words, "--method", "best_member", "--out", str(out)]
    assert main(line) == 0
    (note,) = [n for n in read_report(out).notes if n.startswith("a.pt is right on ")]
    assert warning in note


def test_without_the_factorys_name_no_code_of_a_run_is_imported(
    say: Say, walk: Path, capsys: pytest.CaptureFixture[str]
):
    say(f"fuse {MEMBERS} {TREATED} --method best_member --out known")
    del sys.modules["mynets"]
    assert main("export known --out known.onnx".split()) == 2
    assert "add --architecture mynets:net" in capsys.readouterr().err
    assert "mynets" not in sys.modules
    assert not (walk / "known.onnx").exists()
