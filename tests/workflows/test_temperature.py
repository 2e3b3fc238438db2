"""A temperature fitted on validation and folded into the student."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import metaensemble as me
from metaensemble.cli import main
from metaensemble.core.errors import InputError
from metaensemble.data import ImageData, load_data
from metaensemble.engine import RunLog
from metaensemble.methods import KD
from metaensemble.metrics import fit_temperature
from metaensemble.report import read_report
from metaensemble.teachers import Ensemble, load_member
from metaensemble.workflows.fuse import Choices, fuse_and_find
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.reporting import save_student
from metaensemble.workflows.students import evaluate_on
from metaensemble.workflows.temperature import refuse_without_head


@pytest.fixture(scope="module")
def some_digits() -> ImageData:
    """The digits with 60 images for validation."""
    return load_data("digits", limit_train=120, validation_fraction=0.5)


@pytest.fixture
def session(some_digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, some_digits, None, RunLog(quiet=True))


@pytest.fixture
def zoo(tmp_path: Path, template_member) -> Ensemble:
    """Two members that are far too sure."""
    return Ensemble(
        (
            template_member(tmp_path / "a.safetensors", 20.0),
            template_member(tmp_path / "b.safetensors", 25.0),
        )
    )


@pytest.mark.parametrize(
    "method", ["kd", "soup", "best_member", "ensemble_distribution"]
)
def test_the_students_logits_are_divided(session, zoo, method: str, tmp_path: Path):
    trained = method in ("kd", "ensemble_distribution")
    fields = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3} if trained else {}
    how = make_method(method, **fields)
    plain = fuse_and_find(session, zoo, how).student
    made = fuse_and_find(session, zoo, how, Choices(calibrate=True))
    student = made.student
    split = session.data.validation
    before = evaluate_on(session, plain.network, plain.info, split)
    after = evaluate_on(session, student.network, student.info, split)
    temperature = student.temperature
    assert temperature == fit_temperature(before.log_probs, split.labels)
    assert temperature is not None
    assert temperature > 1
    images = session.data.normalization(session.data.test.batch(torch.arange(50)))
    with torch.no_grad():
        one, two = plain.network.eval()(images), student.network.eval()(images)
    torch.testing.assert_close(two, one / temperature, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.argmax(-1), two.argmax(-1))
    assert after.measured.nll < before.measured.nll
    assert after.measured.accuracy == before.measured.accuracy
    assert student.notes[-1] == (
        f"temperature {temperature:.3f}, fitted on validation, is folded into the last "
        f"linear layer: NLL {before.measured.nll:.4f} before, "
        f"{after.measured.nll:.4f} after; ECE {100 * before.measured.ece:.2f} % before"
        f", {100 * after.measured.ece:.2f} % after"
    )
    path = tmp_path / "student.safetensors"
    save_student(path, made.ensemble, student, how)
    member = load_member(path, data=session.data)
    assert member.info.training["temperature"] == temperature
    assert torch.equal(member.network()(images), two)


def test_a_calibrated_student_stays(session, zoo, tmp_path: Path):
    choices = Choices(calibrate=True)
    student = fuse_and_find(session, zoo, make_method("soup"), choices).student
    path = tmp_path / "student.safetensors"
    member = save_student(path, zoo, student, make_method("soup"))
    others = Ensemble((member, member))
    again = fuse_and_find(session, others, make_method("best_member"), choices).student
    assert again.temperature == pytest.approx(1, abs=1e-3)


def test_decisions_that_are_all_right_set_no_temperature(
    session, some_digits, tmp_path: Path, template_member
):
    # the NLL falls for ever as T does
    member = template_member(tmp_path / "a.safetensors", 0.1)
    network = member.network()
    images = some_digits.normalization(some_digits.train.batch(torch.arange(60)))
    right = network(images).argmax(-1) == some_digits.train.labels
    easy = replace(
        some_digits, validation=some_digits.train.subset(right.nonzero().flatten())
    )
    session = replace(session, data=easy)
    choices = Choices(calibrate=True)
    zoo = Ensemble((member, member))
    made = fuse_and_find(session, zoo, make_method("best_member"), choices).student
    assert made.temperature is None
    assert "of which 100.0 % are right, do not set one" in made.notes[-1]
    state = member.state()
    own = made.network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state)


def test_the_best_member_that_is_shipped_is_calibrated_too(
    session, zoo, template_member, tmp_path: Path
):
    bad = template_member(tmp_path / "bad.safetensors", -90.0)
    mixed = Ensemble((zoo.members[0], bad))
    choices = Choices(fallback="best-member", calibrate=True)
    made = fuse_and_find(session, mixed, make_method("soup"), choices)
    assert made.found.against_best is not None
    assert made.found.against_best.fallback
    assert made.student.temperature is not None
    assert made.student.temperature > 1
    images = session.data.normalization(session.data.test.batch(torch.arange(20)))
    with torch.no_grad():
        own = made.student.network(images)
        theirs = zoo.members[0].network()(images)
    torch.testing.assert_close(own, theirs / made.student.temperature)


def test_a_student_without_a_linear_head_is_refused_before_any_work(
    session, zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "bounded_network.py").write_text(
        "from metaensemble.models import build\n"
        "from torch import nn\n"
        "class Bounded(nn.Module):\n"
        "    def __init__(self, network):\n"
        "        super().__init__()\n"
        "        self.network = network\n"
        "    def forward(self, images):\n"
        "        return self.network(images).tanh()\n"
        "def factory(classes, input_shape):\n"
        "    return Bounded(build('mlp,width=8', classes, input_shape))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    message = (
        "^a student's logits must be the output of a linear layer for --calibrate, but "
        "those of bounded_network:factory are not; leave out --calibrate$"
    )
    choices = Choices(student="bounded_network:factory", calibrate=True)
    with pytest.raises(InputError, match=message):
        fuse_and_find(session, zoo, KD(epochs=1), choices)
    assert session.cache.images_run == 0
    refuse_without_head(zoo.info)


def test_the_command_and_the_interface_calibrate(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    paths = " ".join(str(member.path) for member in zoo.members)
    out = tmp_path / "run"
    line = (
        f"fuse {paths} --data digits --limit-train 120 --validation-fraction 0.5 "
        f"--method soup --calibrate --quiet --out {out}"
    )
    assert main(line.split()) == 0
    report = read_report(out)
    assert any(note.startswith("temperature ") for note in report.notes)
    data = load_data("digits", limit_train=120, validation_fraction=0.5)
    ensemble = me.load_ensemble([m.path for m in zoo.members], data=data)
    fused = me.fuse(ensemble, data, "soup", calibrate=True, cache=tmp_path / "cache")
    saved = fused.save(tmp_path / "student.safetensors")
    assert saved.sha256 == report.student.sha256
    assert me.evaluate(saved, data.test) == report.student.test
    assert me.evaluate(fused, data.test) == report.student.test
