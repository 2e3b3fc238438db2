"""Every method of the registry, on every family of networks, with few teachers.

Distillation takes one or three, what works on weights two or three.

A new method is tested here without a new line, unless its hyperparameters need a value
that makes it small (`SMALL` in `conftest`).
"""

import hashlib
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of
from metaensemble.engine import Fitted, RunLog, evaluate, fit
from metaensemble.methods import Auto, Distillation, Learner, TrainedMethod
from metaensemble.models import has_batchnorm, init_model
from metaensemble.report import Report, read_report, write_report
from metaensemble.teachers import Ensemble, LiveTeacher, load_member
from metaensemble.workflows import students
from metaensemble.workflows.fuse import FuseOptions, fuse_students
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.registry import METHODS, make_method
from metaensemble.workflows.reporting import measure_student, save_student
from tests.conformance.conftest import FAMILIES, coloured, small, untrained

GIVEN = [name for name, kind in METHODS.items() if kind.fewest_members > 0]
"""Methods that start from members; those that do not are in `test_online`."""


def distils(name: str) -> bool:
    """Return whether a method trains a student of any architecture."""
    return issubclass(METHODS[name], Distillation)


CASES = [
    pytest.param(
        name,
        family,
        members,
        id=f"{name}-{family}-{members}",
        # its 9 million weights take seconds
        marks=pytest.mark.slow if family == "vgg11_bn" else (),
    )
    for name in GIVEN
    for family in FAMILIES
    for members in ((1, 3) if distils(name) else (2, 3))
]


@pytest.fixture
def watched(monkeypatch) -> list[LiveTeacher]:
    """Every teacher's network that a method takes into memory."""
    seen: list[LiveTeacher] = []
    init = LiveTeacher.__init__

    def noted(self, *arguments, **options):
        init(self, *arguments, **options)
        seen.append(self)

    monkeypatch.setattr(LiveTeacher, "__init__", noted)
    return seen


@pytest.mark.parametrize(("name", "family", "count"), CASES)
def test_a_student_is_a_plain_member(name, family, count, tmp_path, watched):
    architecture, size = FAMILIES[family]
    data = coloured(size)
    ensemble = untrained(tmp_path, data, architecture, count)
    before = [sha256_of(member.path) for member in ensemble.members]
    method = small(name)
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, data, None, RunLog(quiet=True))

    *_, student = fuse_students(session, ensemble, method)

    # what came out is the plain network, and a file of it is a member
    path = tmp_path / "student.safetensors"
    save_student(path, ensemble, student, method)
    member = load_member(path, data=data)
    made = member.info.architecture  # blockwise makes a slimmer one
    assert made == architecture or made.startswith(f"{architecture},slim=")
    plain = init_model(made, 3, data.input_shape, 0).state_dict()
    state = member.state()
    assert set(state) == set(plain)
    assert set(state) == set(
        init_model(architecture, 3, data.input_shape, 0).state_dict()
    )
    assert all(state[key].shape == plain[key].shape for key in plain)
    normalization = student.info.normalization
    here = evaluate(student.network, normalization, data.test)
    there = evaluate(member.network(), normalization, data.test)
    assert torch.equal(here.log_probs, there.log_probs)

    # every number of the training was finite
    for row in student.history:
        assert all(torch.isfinite(torch.tensor(v)) for v in row.values()), row
    if isinstance(method, TrainedMethod):
        assert any(key.startswith("loss_") for key in student.history[-1])
        assert student.train_images > 0

    # its report is whole
    report = measure_student(
        session, ensemble, student, command="a test", method=method, path=path
    ).report
    write_report(tmp_path / "report.json", report)
    again = read_report(tmp_path / "report.json")
    assert again.method["name"] == name
    assert len(again.teachers) == count
    assert again.student.sha256 == member.sha256
    assert again.cost.parameters == sum(
        p.numel() for p in init_model(made, 3, data.input_shape, 0).parameters()
    )

    # the teachers are as they were, on disk and in memory, parameters and buffers
    for teacher in watched:
        assert not teacher.network.training
        as_saved = teacher.member.state()
        for key, value in teacher.network.state_dict().items():
            assert torch.equal(value, as_saved[key]), key
        assert all(p.grad is None for p in teacher.network.parameters())
    if isinstance(method, TrainedMethod) and method.live:
        assert {t.member.path for t in watched} == {m.path for m in ensemble.members}
    assert [sha256_of(member.path) for member in ensemble.members] == before


@pytest.mark.parametrize("name", [name for name in GIVEN if distils(name)])
def test_what_is_exported_is_what_was_trained(name, tmp_path, monkeypatch):
    data = coloured(8)
    ensemble = untrained(tmp_path, data, "convnet,width=4", 3)
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, data, None, RunLog(quiet=True))
    learners: list[Learner] = []

    def noted(learner: Learner, *arguments: Any, **keywords: Any) -> Fitted:
        learners.append(learner)
        return fit(learner, *arguments, **keywords)

    monkeypatch.setattr(students, "fit", noted)
    *_, student = fuse_students(session, ensemble, small(name))
    learner = learners[-1].eval()
    inputs = student.info.normalization(data.test.batch(torch.arange(9)))
    with torch.no_grad():
        trained = learner.predictions(inputs)
        exported = student.network.eval()(inputs)
    assert trained.shape[1:] == exported.shape
    if len(trained) == 1:  # the members of a latent ensemble are averaged
        torch.testing.assert_close(exported, trained[0])
    names = set(init_model("convnet,width=4", 3, data.input_shape, 0).state_dict())
    assert set(student.network.state_dict()) == names
    for module in student.network.modules():  # nothing of the training hangs on
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("name", GIVEN)
def test_a_repeated_run_writes_the_same_bytes(name, tmp_path):
    data = coloured(8)
    ensemble = untrained(tmp_path, data, "convnet,width=4", 2)
    assert has_batchnorm(ensemble.members[0].network())
    hashes = set()
    for turn in ("first", "second"):
        options = RunOptions(device="cpu", cache=tmp_path / turn, quiet=True)
        session = open_session(options, data, None, RunLog(quiet=True))
        method = small(name)
        torch.manual_seed(len(turn))  # whatever was drawn before plays no part
        *_, student = fuse_students(session, ensemble, method)
        path = tmp_path / f"{turn}.safetensors"
        save_student(path, ensemble, student, method)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.parametrize("name", GIVEN)
def test_members_of_two_architectures_are_refused_or_taken(name, tmp_path):
    data = coloured(8)
    one = untrained(tmp_path / "one", data, "mlp,width=8", 1)
    other = untrained(tmp_path / "other", data, "convnet,width=4", 1)
    mixed = Ensemble((*one.members, *other.members))
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, data, None, RunLog(quiet=True))
    if "one architecture" in METHODS[name].needs:
        with pytest.raises(
            InputError, match=r"must share one architecture, but .* choose --method kd"
        ):
            fuse_students(session, mixed, small(name))
        return
    if "one depth" in METHODS[name].needs:
        with pytest.raises(
            InputError, match=r"must have one depth .*, but .* choose --method kd"
        ):
            fuse_students(session, mixed, small(name))
        return
    *_, student = fuse_students(session, mixed, small(name))
    report = measure_student(
        session, mixed, student, command="a test", method=small(name)
    ).report
    assert isinstance(report, Report)
    assert {t.architecture for t in report.teachers} == {
        "mlp,width=8",
        "convnet,width=4",
    }


@pytest.mark.parametrize("name", GIVEN)
def test_another_student_is_refused_or_made(name, tmp_path):
    data = coloured(8)
    ensemble = untrained(tmp_path, data, "convnet,width=4", 2)
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, data, None, RunLog(quiet=True))
    method = small(name)
    takes = isinstance(method, TrainedMethod | Auto)
    if not takes or name == "weightformer":
        with pytest.raises(InputError, match="--student must be the members' arch"):
            fuse_students(session, ensemble, method, "mlp,width=8")
        return
    *_, student = fuse_students(session, ensemble, method, "mlp,width=8")
    assert student.info.architecture.startswith("mlp,width=8")
    assert student.info.normalization == data.normalization


@pytest.mark.parametrize("name", METHODS)
def test_every_method_tells_what_it_is(name):
    kind = METHODS[name]
    assert kind.model_fields["name"].default == name
    assert kind.__doc__
    for text in (kind.summary, kind.paper, kind.cost):
        assert text.strip() == text != ""
    assert all(isinstance(need, str) and need for need in kind.needs)


@pytest.mark.parametrize("name", METHODS)
def test_every_hyperparameter_is_documented_and_has_a_flag_of_its_own(name):
    options = set(FuseOptions.model_fields) | {"method", "config", "help"}
    for field, info in METHODS[name].model_fields.items():
        assert info.description, f"{name}.{field} lacks a docstring"
        assert field not in options, f"{name}.{field} is an option of fuse, too"


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_values_that_refuse_unknown_fields(name):
    method = make_method(name)
    assert method == make_method(name)
    with pytest.raises(ValidationError, match="frozen"):
        method.name = "another"  # pyright: ignore
    with pytest.raises(InputError, match=r"must be valid, but no_such_thing: .*--help"):
        make_method(name, no_such_thing=1)


def test_an_unknown_method_is_refused_with_all_names():
    with pytest.raises(InputError, match=r"must be one of best_member, .* 'kdd'"):
        make_method("kdd")
