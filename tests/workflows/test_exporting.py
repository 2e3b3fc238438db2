"""`me.export_model`: of a student in memory, a member, a path."""

import pytest

import metaensemble as me
from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of
from metaensemble.teachers import load_member


@pytest.fixture(scope="module")
def zoo(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for seed in (0, 1):
        make_member(folder / f"{seed}.safetensors", seed)
    return folder


def test_a_student_in_memory_is_verified_on_its_data(zoo, digits, tmp_path):
    ensemble = me.load_ensemble([zoo], data=digits)
    fused = me.fuse(ensemble, digits, "best_member", cache=tmp_path / "cache")
    out = tmp_path / "s.safetensors"
    done = me.export_model(fused, out, "safetensors")
    assert done.sha256 == sha256_of(out)
    assert done.verified.images == len(digits.test)
    assert done.verified.unequal_decisions == 0
    assert done.members == 2
    assert done.latency_ms["torch"]["ratio"] == pytest.approx(0.5, abs=0.2)
    assert done.figures.name == "s.safetensors.json"
    assert done.figures.is_file()
    measured = me.evaluate(load_member(out, data=digits), digits.test)
    assert measured.accuracy == fused.report.student.test.accuracy


def test_members_and_paths_are_taken_too(zoo, digits, tmp_path):
    path = zoo / "0.safetensors"
    one = me.export_model(path, tmp_path / "a.safetensors", "safetensors", data=digits)
    two = me.export_model(load_member(path), tmp_path / "b.safetensors", "safetensors")
    assert one.sha256 == two.sha256
    assert (one.on, two.on) == ("test images of digits", "random images")
    assert (one.verified.images, two.verified.images) == (len(digits.test), 256)


def test_what_exists_is_not_replaced_unasked(zoo, tmp_path):
    member, out = load_member(zoo / "0.safetensors"), tmp_path / "a.safetensors"
    out.write_text("mine")
    with pytest.raises(InputError, match="must not exist yet, but"):
        me.export_model(member, out, "safetensors")
    with pytest.raises(InputError, match=r"must end in .onnx for --format onnx"):
        me.export_model(member, out)
    with pytest.raises(InputError, match="must not replace what is in use"):
        me.export_model(member, member.path, "safetensors", overwrite=True)
    assert out.read_text() == "mine"
    me.export_model(member, out, "safetensors", overwrite=True)
    assert load_member(out).info.architecture == "mlp,width=8"
