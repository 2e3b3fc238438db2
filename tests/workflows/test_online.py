"""The command without members: what a run of an online method holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.cli import main
from metaensemble.core.files import sha256_of
from metaensemble.engine import Fitted, evaluate, fit
from metaensemble.methods import OnlineMethod
from metaensemble.report import read_report
from metaensemble.teachers import load_member
from metaensemble.workflows import online
from metaensemble.workflows.registry import METHODS

LINE = "fuse --data digits --limit-train 60 --student convnet,width=4 --quiet"
ONE = f"{LINE} --method one --epochs 2 --batch-size 18"
ONLINE = [name for name, kind in METHODS.items() if issubclass(kind, OnlineMethod)]


@pytest.fixture(autouse=True)
def _workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))


def hashes(folder: Path) -> dict[str, str]:
    return {path.stem: sha256_of(path) for path in folder.rglob("*.safetensors")}


def test_a_run_holds_the_student_and_every_network(digits):
    assert main(f"{ONE} --out run".split()) == 0
    run = Path("run")
    assert {
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()
    } == {
        "card.md",
        "config.yaml",
        "log.jsonl",
        "networks/branch-0.safetensors",
        "networks/branch-1.safetensors",
        "networks/branch-2.safetensors",
        "networks/gated.safetensors",
        "page.html",
        "predictions/test.safetensors",
        "report.json",
        "student.safetensors",
    }
    student = load_member(run / "student.safetensors", data=digits)
    branches = [
        load_member(run / f"networks/branch-{i}.safetensors", data=digits)
        for i in range(3)
    ]
    gated = load_member(run / "networks/gated.safetensors", data=digits)
    first = branches[0].state()
    assert all(torch.equal(v, first[name]) for name, v in student.state().items())
    assert student.info.training["teachers"] == [b.sha256 for b in branches]

    report = read_report(run)
    assert [t.path for t in report.teachers] == [
        f"networks/branch-{i}.safetensors" for i in range(3)
    ]
    assert [t.sha256 for t in report.teachers] == [b.sha256 for b in branches]
    assert {t.architecture for t in report.teachers} == {"convnet,width=4"}
    assert report.student.test == report.teachers[0].test
    (other,) = report.others
    assert (other.path, other.sha256) == ("networks/gated.safetensors", gated.sha256)
    assert other.architecture == "convnet,width=4,branches=3"
    normalization = digits.normalization
    measured = evaluate(gated.network(), normalization, digits.test).measured
    assert other.test == measured
    assert "3 branches of 1,354 parameters share a trunk of 940" in report.notes
    assert report.trained_together
    assert report.verdict is not None
    for shown, test in (
        ("the student has", report.student.test),
        ("the mean of them", report.mean_teacher.test),
        ("their ensemble", report.ensemble.test),
        ("gated", other.test),
    ):
        assert f"{shown} {100 * test.accuracy:.1f}%" in report.verdict
    assert report.verdict.startswith("one trained 3 networks: the student has ")
    assert report.cost.train_images == 108
    assert report.cost.teacher_images == 0


def test_the_ensemble_averages_what_it_is_told():
    assert main(f"{ONE} --out probabilities".split()) == 0
    assert main(f"{ONE} --out logits --average logits".split()) == 0
    one, other = read_report(Path("probabilities")), read_report(Path("logits"))
    assert one.teachers == other.teachers
    assert one.ensemble.test.nll != other.ensemble.test.nll


def test_a_student_can_be_calibrated():
    assert main(f"{ONE} --epochs 8 --out plain".split()) == 0
    assert main(f"{ONE} --epochs 8 --out run --calibrate".split()) == 0
    report = read_report(Path("run"))
    student = load_member(Path("run/student.safetensors"))
    temperature = student.info.training["temperature"]
    assert temperature != 1
    branch = load_member(Path("run/networks/branch-0.safetensors"))
    before, after = branch.state()["fc.weight"], student.state()["fc.weight"]
    torch.testing.assert_close(after, before / temperature)
    assert any("is folded into the last" in note for note in report.notes)
    assert hashes(Path("run/networks")) == hashes(Path("plain/networks"))


@pytest.mark.parametrize("name", ONLINE)
def test_an_interrupted_run_ends_in_the_same_bytes(name, monkeypatch):
    """The last training is left at step 5, as by control-C."""
    line = f"{LINE} --method {name} --epochs 4 --batch-size 18"
    trainings: list[str] = []

    def noted(*arguments: Any, **options: Any) -> Fitted:
        trainings.append(options["what"])
        return fit(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(online, "fit", noted)
        assert main(f"{line} --out whole".split()) == 0
    last = trainings[-1]

    def interrupted(*arguments: Any, **options: Any) -> Fitted:
        if options["what"] != last:
            return fit(*arguments, **options)
        fit(*arguments, **options, stop_after=5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(online, "fit", interrupted)
        assert main(f"{line} --out run".split()) == 130
    assert not Path("run").exists()
    assert list(Path(".run.partial").glob(f".{last}.*.ckpt"))
    assert main(f"{line} --out run".split()) == 0
    log = [json.loads(row) for row in Path("run/log.jsonl").read_text().splitlines()]
    resumed = [row for row in log if row["event"] == "resume"]
    assert (last, 5) in [(row["what"], row["step"]) for row in resumed]
    assert hashes(Path("run")) == hashes(Path("whole"))
    assert not list(Path("run").glob(".*.ckpt"))


def test_a_runs_config_repeats_it():
    assert main(f"{ONE} --branches 2 --seed 3 --out run".split()) == 0
    assert main("fuse --config run/config.yaml --out again --quiet".split()) == 0
    assert hashes(Path("again")) == hashes(Path("run"))
    networks = {"student", "branch-0", "branch-1", "gated"}
    assert set(hashes(Path("run"))) == {*networks, "test"}  # predictions/test
    assert main(f"{ONE} --branches 2 --seed 4 --out other".split()) == 0
    assert hashes(Path("other")) != hashes(Path("run"))


def test_all_branches_with_the_gate_are_a_member_like_any_other(make_member):
    assert main(f"{ONE} --out run".split()) == 0
    make_member(Path("other.safetensors"), 1)
    gated = "run/networks/gated.safetensors"
    assert main(f"evaluate {gated} --data digits --limit-train 60".split()) == 0
    line = "--data digits --limit-train 60 --epochs 1 --quiet"
    kd = f"fuse {gated} other.safetensors --method kd --student mlp,width=8 {line}"
    assert main(f"{kd} --out kd".split()) == 0
    report = read_report(Path("kd"))
    assert report.teachers[0].test == read_report(Path("run")).others[0].test
    self = f"fuse {gated} --method kd {line} --out itself"
    assert main(self.split()) == 0
    made = load_member(Path("itself/student.safetensors"))
    assert made.info.architecture == "convnet,width=4,branches=3"


def test_any_network_can_be_taught_with_branches():
    line = "teach --data digits --limit-train 60 --architecture mlp,width=8,branches=2"
    assert main(f"{line} --members 1 --epochs 1 --quiet --out zoo".split()) == 0
    member = load_member(Path("zoo/member-0000.safetensors"))
    assert "gate.linear.weight" in member.tensors
