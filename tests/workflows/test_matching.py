"""Members of another order of classes or another size of images, in every workflow."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metaensemble as me
from metaensemble.cli import main
from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog
from metaensemble.merging import BestMember, OtFusion
from metaensemble.methods import KD
from metaensemble.metrics import measure
from metaensemble.models import init_model
from metaensemble.report import read_report
from metaensemble.teachers import (
    Ensemble,
    Member,
    MemberInfo,
    load_ensemble,
    load_member,
    save_member,
)
from metaensemble.workflows.diagnosis import diagnose
from metaensemble.workflows.fuse import fuse_and_find, fuse_students
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.students import merge_student

TURN = [*range(9, -1, -1)]
SHORT = KD(epochs=0.1, batch_size=54, views=1, start="scratch")


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


@pytest.fixture
def pair(tmp_path: Path, template_member, make_member) -> Ensemble:
    """A good member and an untrained one, both in the data's order."""
    good = template_member(tmp_path / "zoo" / "good.safetensors", 0.3)
    poor = make_member(tmp_path / "zoo" / "poor.safetensors", 0)
    return Ensemble((good, poor))


@pytest.fixture
def turned(tmp_path: Path, pair: Ensemble, digits) -> Member:
    """The good member with its classes in the opposite order."""
    good = pair.members[0]
    state = {name: tensor[TURN] for name, tensor in good.state().items()}
    info = good.info.model_copy(update={"classes": good.info.classes[::-1]})
    path = tmp_path / "turned.safetensors"
    save_member(path, state, info)
    return load_member(path, data=digits)


@pytest.fixture
def large(tmp_path: Path, digits) -> Member:
    """A member that takes images of 12x10 pixels."""
    shape = (1, 12, 10)
    network = init_model("mlp,width=8", 10, shape, seed=4)
    info = MemberInfo(
        architecture="mlp,width=8",
        classes=digits.classes,
        input_shape=shape,
        normalization=digits.normalization,
    )
    path = tmp_path / "large.safetensors"
    save_member(path, network.state_dict(), info)
    return load_member(path, data=digits)


def state_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def test_a_student_does_not_see_the_order_of_its_teachers(session, pair, turned):
    plain = fuse_students(session, pair, SHORT)[-1]
    other = fuse_students(session, Ensemble((turned, pair.members[1])), SHORT)[-1]
    assert other.info.classes == session.data.classes
    assert other.info.architecture == plain.info.architecture
    own, same = state_of(plain.network), state_of(other.network)
    assert all(torch.equal(own[name], same[name]) for name in own)


def test_a_student_of_members_for_larger_images_takes_the_datas(session, pair, large):
    ensemble = Ensemble((large, *pair.members))
    made = fuse_and_find(session, ensemble, SHORT)
    student = made.student
    assert student.info.input_shape == (1, 8, 8)
    assert student.network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    report = measure_student(
        session, ensemble, student, command="a test", method=SHORT, found=made.found
    ).report
    assert report.cost.ensemble_latency_ms is not None
    note = "images of 8x8 pixels are resized to 12x10 pixels for large.safetensors"
    assert note in report.notes
    # what the report says of the member is what its network says of resized images
    test = session.data.test
    with torch.no_grad():
        rows = large.network()(large.prepare(test.images))
    own = measure(rows.log_softmax(-1), test.labels)
    assert report.teachers[0].test.accuracy == own.accuracy
    assert report.teachers[0].test.nll == pytest.approx(own.nll)


def test_the_report_says_what_was_matched(session, pair, turned):
    ensemble = Ensemble((turned, pair.members[1]))
    made = fuse_and_find(session, ensemble, SHORT)
    report = measure_student(
        session, ensemble, made.student, command="a test", method=SHORT
    ).report
    assert (
        "classes of turned.safetensors are in another order than those of digits; they "
        "are matched by name"
    ) in report.notes
    assert not any("resized" in note for note in report.notes)
    plain = measure_student(
        session, pair, made.student, command="a test", method=SHORT
    ).report
    assert report.ensemble == plain.ensemble
    assert report.teachers[0].test == plain.teachers[0].test
    assert not any("matched by name" in note for note in plain.notes)


def test_the_best_member_keeps_its_own_order_and_is_measured_in_the_datas(
    session, pair, turned, tmp_path
):
    ensemble = Ensemble((pair.members[1], turned))
    student = merge_student(session, ensemble, BestMember())
    assert student.info.classes == turned.info.classes
    report = measure_student(
        session, ensemble, student, command="a test", method=BestMember()
    ).report
    assert report.student.test == report.teachers[1].test
    in_order = Ensemble((pair.members[1], pair.members[0]))
    plain = measure_student(
        session,
        in_order,
        merge_student(session, in_order, BestMember()),
        command="a test",
        method=BestMember(),
    ).report
    assert report.student.test == plain.student.test
    assert report.fidelity == plain.fidelity
    assert "the student's classes are in another order than digits's" in report.notes
    fused = me.fuse(
        ensemble, session.data, "best_member", device="cpu", cache=tmp_path / "cache"
    )
    assert fused.report.student.test == report.student.test
    test = session.data.test
    assert me.evaluate(fused, test) == report.student.test
    assert me.evaluate(fused.save(tmp_path / "s.safetensors"), test) == (
        report.student.test
    )


def test_the_best_member_takes_images_of_its_own_size(session, large):
    ensemble = Ensemble((large,))
    student = merge_student(session, ensemble, BestMember())
    report = measure_student(
        session, ensemble, student, command="a test", method=BestMember()
    ).report
    assert report.student.test == report.teachers[0].test
    assert "the student takes images of 12x10 pixels" in report.notes


def test_a_fallback_to_a_member_in_another_order(session, pair, turned):
    ensemble = Ensemble((pair.members[1], turned))
    made = me.fuse(
        ensemble,
        session.data,
        SHORT,
        fallback="best_member",
        device="cpu",
        cache=session.cache.folder,
    )
    assert made.report.fell_back
    assert made.report.student.test == made.report.teachers[1].test


def test_members_loaded_without_data_are_fitted_to_those_of_the_fusion(
    session, pair, turned
):
    bare = load_ensemble([turned.path, pair.members[1].path])
    assert bare.members[0].order is None  # the first one's order is the ensemble's
    fused = me.fuse(bare, session.data, SHORT, device="cpu", cache=session.cache.folder)
    good = me.evaluate(pair.members[0], session.data.test)
    assert fused.report.teachers[0].test.accuracy == good.accuracy
    assert me.evaluate(turned, session.data.test).accuracy == good.accuracy


def test_a_diagnosis_compares_no_weights_of_such_members(session, pair, turned, large):
    for odd in (turned, large):
        found = diagnose(session, Ensemble((pair.members[0], odd)))
        assert found.kinship is None
        assert found.barrier is None
    same = diagnose(session, Ensemble((pair.members[0], turned)))
    assert same.disagreement == 0
    assert same.best_member_accuracy == same.ensemble


def test_a_fusion_by_transport_refuses_them(session, pair, turned):
    message = "one input normalisation and the data's order of classes, but .*turned"
    with pytest.raises(InputError, match=message):
        fuse_students(session, Ensemble((pair.members[0], turned)), OtFusion())


def test_commands_take_them(pair, turned, large, tmp_path, monkeypatch):
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    files = f"{pair.members[0].path} {turned.path} {large.path}"
    data = "--data digits --limit-train 60 --quiet"
    out = tmp_path / "e.json"
    assert main(f"evaluate {files} {data} --json {out}".split()) == 0
    value = json.loads(out.read_text())
    good, same, _ = (model["test"] for model in value["models"])
    assert good["accuracy"] == same["accuracy"]
    run = tmp_path / "run"
    line = f"fuse {files} {data} --method kd --epochs 0.1 --out {run}"
    assert main(line.split()) == 0
    assert len(read_report(run).teachers) == 3
