import gc
from pathlib import Path

import pytest
import torch

import metaensemble as me
from metaensemble.cli import main
from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of
from metaensemble.teachers import load_member


@pytest.fixture
def zoo(make_member, tmp_path: Path) -> Path:
    for seed in (0, 1):
        make_member(tmp_path / "zoo" / f"{seed}.safetensors", seed)
    return tmp_path / "zoo"


def test_the_story_of_the_docstring(zoo, digits, tmp_path):
    ensemble = me.load_ensemble([zoo], data=digits)
    method = me.methods.KD(epochs=1)
    fused = me.fuse(ensemble, digits, method, device="cpu", cache=tmp_path / "cache")
    assert not fused.network.training
    assert me.evaluate(fused, digits.test) == fused.report.student.test
    assert fused.report.method["name"] == "kd"
    member = fused.save(tmp_path / "student.safetensors")
    assert me.evaluate(member, digits.test) == fused.report.student.test
    bare = me.evaluate(fused.network, digits.test, digits.normalization)
    assert bare == fused.report.student.test
    images = digits.normalization(digits.test.images[:3])
    assert fused.network(images).shape == (3, 10)


def test_a_name_stands_for_its_defaults(zoo, digits, tmp_path):
    ensemble = me.load_ensemble([zoo], data=digits)
    fused = me.fuse(ensemble, digits, "soup", device="cpu", cache=tmp_path / "cache")
    states = [m.state() for m in ensemble.members]
    for name, tensor in fused.network.state_dict().items():
        mean = torch.stack([state[name] for state in states]).mean(0)
        assert torch.allclose(tensor, mean, atol=1e-6)


def test_command_and_api_make_the_same_student(zoo, tmp_path):
    line = f"fuse {zoo} --data digits --limit-train 60 --method kd --epochs 2 --quiet"
    cache = tmp_path / "cache"
    assert main(f"{line} --out {tmp_path / 'run'} --cache {cache}".split()) == 0
    data = me.load_data("digits", limit_train=60, unlabelled=False)
    ensemble = me.load_ensemble([zoo], data=data)
    fused = me.fuse(ensemble, data, me.methods.KD(epochs=2), cache=cache)
    fused.save(tmp_path / "student.safetensors")
    one = sha256_of(tmp_path / "student.safetensors")
    assert one == sha256_of(tmp_path / "run" / "student.safetensors")
    assert load_member(tmp_path / "student.safetensors", data=data)


def test_a_bare_network_needs_its_normalization(zoo, digits):
    network = me.load_ensemble([zoo]).members[0].network()
    with pytest.raises(InputError, match="must come with its input normalisation"):
        me.evaluate(network, digits.test)


def test_an_unknown_method_is_refused(zoo, digits):
    with pytest.raises(InputError, match=r"must be one of .* but is 'kdd'"):
        me.fuse(me.load_ensemble([zoo]), digits, "kdd")


def test_networks_that_are_trained_together_need_no_members(digits, tmp_path):
    method = me.methods.One(epochs=1, branches=2)
    made = me.fuse(
        None, digits, method, student="convnet,width=4", cache=tmp_path / "cache"
    )
    assert [m.name for m in made.ensemble.members] == [
        "branch-0.safetensors",
        "branch-1.safetensors",
    ]
    (gated,) = made.others
    assert gated.info.architecture == "convnet,width=4,branches=2"
    assert me.evaluate(made, digits.test) == made.report.student.test
    assert me.evaluate(made.ensemble.members[0], digits.test) == me.evaluate(
        made, digits.test
    )
    assert me.evaluate(gated, digits.test) == made.report.others[0].test
    folder = gated.path.parent
    assert folder.exists()
    del made
    gc.collect()
    assert not folder.exists()


def test_networks_that_are_trained_together_stay_where_one_says(tmp_path):
    folder, cache = tmp_path / "networks", tmp_path / "cache"
    data = me.load_data("digits", limit_train=60, unlabelled=False)
    made = me.fuse(
        None,
        data,
        me.methods.One(epochs=1),
        student="mlp,width=8",
        networks=folder,
        cache=cache,
    )
    del made
    gc.collect()
    assert len(me.load_ensemble([folder], data=data)) == 4
    line = (
        "fuse --data digits --limit-train 60 --method one --epochs 1 --quiet "
        f"--student mlp,width=8 --out {tmp_path / 'run'} --cache {cache}"
    )
    assert main(line.split()) == 0
    for path in folder.iterdir():
        assert sha256_of(path) == sha256_of(tmp_path / "run/networks" / path.name)


def test_a_method_that_needs_members_must_have_them(digits):
    with pytest.raises(InputError, match=r"kd must have members, but got none; pass"):
        me.fuse(None, digits, "kd", student="mlp,width=8")
    with pytest.raises(InputError, match="but neither members nor --student are given"):
        me.fuse(None, digits, "one")
