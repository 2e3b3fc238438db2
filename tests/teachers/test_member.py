import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import sha256_of
from metaensemble.core.states import hash_state, load_state, save_state
from metaensemble.data import ImageData
from metaensemble.models import build, init_model
from metaensemble.teachers import Member, MemberInfo, load_member, save_member
from metaensemble.teachers.member import start_of
from metaensemble.teachers.tensors import load_strictly


@pytest.fixture
def member(tmp_path: Path, make_member: Callable[..., Member]) -> Member:
    return make_member(tmp_path / "a.safetensors", 0)


def with_metadata(member: Member, **changes: Any) -> Path:
    """Rewrite a member's file with other metadata; None takes a key out."""
    state, metadata = load_state(member.path)
    changed = {**(metadata or {}), **changes}
    kept = {key: value for key, value in changed.items() if value is not None}
    save_state(member.path, state, kept)
    return member.path


def test_a_member_is_the_same_after_saving_and_loading(
    tmp_path: Path, digits: ImageData
):
    network = init_model("convnet,width=4", 10, (1, 8, 8), seed=3)
    info = MemberInfo(
        architecture="convnet,width=4",
        classes=digits.classes,
        input_shape=digits.input_shape,
        normalization=digits.normalization,
        start=start_of(network),
        training={"seed": 3, "method": {"epochs": 2.0}},
        metrics={"validation": {"accuracy": 0.5}},
    )
    path = tmp_path / "zoo" / "member.safetensors"
    saved = save_member(path, network.state_dict(), info)
    loaded = load_member(path, data=digits)
    assert loaded == saved
    assert loaded.info == info
    assert loaded.name == "member.safetensors"
    assert loaded.sha256 == sha256_of(path)
    assert loaded.tensors == tuple(sorted(network.state_dict()))
    assert hash_state(loaded.state()) == hash_state(network.state_dict())


def test_its_network_gives_the_logits_of_the_network_that_was_saved(
    tmp_path: Path, member: Member
):
    network = init_model("mlp,width=8", 10, (1, 8, 8), seed=9)
    path = tmp_path / "b.safetensors"
    saved = save_member(path, network.state_dict(), member.info)
    images = torch.randn(4, 1, 8, 8)
    assert not saved.network().training
    assert torch.equal(saved.network()(images), network.eval()(images))


def test_the_start_is_known_by_the_parameters():
    network = init_model("convnet", 10, (1, 8, 8), seed=0)
    same = init_model("convnet", 10, (1, 8, 8), seed=0)
    same.get_buffer("bn1.running_mean").add_(1)  # a buffer is no weight
    assert start_of(network) == start_of(same)
    assert start_of(network) != start_of(init_model("convnet", 10, (1, 8, 8), seed=1))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_needs_its_architecture_and_data(
    tmp_path: Path, digits: ImageData, suffix: str
):
    path = tmp_path / f"bare{suffix}"
    state = init_model("mlp,width=8", 10, (1, 8, 8), seed=0).state_dict()
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    message = "must come with its architecture and data, but .* add --architecture NAME"
    known: list[dict[str, Any]] = [
        {},
        {"architecture": "mlp,width=8"},
        {"data": digits},
    ]
    for arguments in known:
        with pytest.raises(InputError, match=message):
            load_member(path, **arguments)
    member = load_member(path, architecture="mlp, width=8", data=digits)
    assert member.info.architecture == "mlp,width=8"
    assert member.info.classes == digits.classes
    assert member.info.normalization == digits.normalization
    assert member.info.start is None
    assert hash_state(member.network().state_dict()) == hash_state(state)


def test_a_module_may_have_held_the_network(tmp_path: Path, digits: ImageData):
    """As Lightning's do, whose checkpoints hold other things, too."""
    path = tmp_path / "a.ckpt"
    state = init_model("mlp,width=8", 10, (1, 8, 8), seed=0).state_dict()
    held = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": held, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, path)
    member = load_member(path, architecture="mlp,width=8", data=digits)
    assert member.tensors == tuple(sorted(state))
    for found in (member.state(), member.lazy_state(), member.network().state_dict()):
        assert hash_state(found) == hash_state(state)


def test_a_factory_that_fails_is_named(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    lines = ["def factory(classes):", "    return {}[classes]"]
    (tmp_path / "failing_factory.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pt")
    message = (
        r"must make a network of 10 classes for images \(1, 8, 8\), but "
        r"failing_factory:factory failed with KeyError: 10; mend it"
    )
    with pytest.raises(InputError, match=message):
        load_member(Path("a.pt"), architecture="failing_factory:factory", data=digits)
    monkeypatch.delitem(sys.modules, "failing_factory")


def test_a_missing_member(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"a.pt does not exist; make members"):
        load_member(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architecture": None}, r"architecture in its metadata is wrong \(Field req"),
        ({"schema_version": 2}, r"schema_version in its metadata is wrong \(Input s"),
        ({"classes": 3}, "classes in its metadata is wrong"),
        ({"input_shape": [1, 8]}, "input_shape.2 in its metadata is wrong"),
        ({"surprise": 1}, r"surprise in its metadata is wrong \(Extra inputs"),
        (
            {"normalization": {"mean": [0.5], "std": [0]}},
            r"normalization in its .* std",
        ),
    ],
)
def test_broken_metadata_is_named(member: Member, changes: dict[str, Any], what: str):
    path = with_metadata(member, **changes)
    message = f"a.safetensors must be a member that metaensemble wrote, but {what}"
    with pytest.raises(InputError, match=message):
        load_member(path)


def test_a_predictor_is_no_member(member: Member):
    path = with_metadata(member, kind="weightformer-predictor")
    with pytest.raises(InputError, match=r"must be a member .* make it again with"):
        load_member(path)


def test_the_tensors_of_another_architecture(member: Member):
    wider = with_metadata(member, architecture="mlp,width=9")
    message = (
        r"the tensors of .*a.safetensors must be those of mlp,width=9, but it has "
        r"'hidden.0.weight' of shape \(8, 64\) where it needs \(9, 64\); check --arch"
    )
    with pytest.raises(InputError, match=message):
        load_member(wider)
    deeper = with_metadata(member, architecture="mlp,width=8,depth=3")
    with pytest.raises(InputError, match=r"but it lacks 'hidden\.4\.weight'; check"):
        load_member(deeper)
    flatter = with_metadata(member, architecture="mlp,width=8,depth=1")
    with pytest.raises(InputError, match=r"but it also has 'hidden\.2\.bias'; check"):
        load_member(flatter)


def test_an_unknown_architecture(member: Member):
    path = with_metadata(member, architecture="mpl")
    with pytest.raises(InputError, match="'mpl' is neither; did you mean"):
        load_member(path)


def test_only_the_count_of_batches_may_be_missing():
    network = build("mlp,width=4,batchnorm=true", 3, (1, 8, 8))
    state = network.state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    load_strictly(network, old, "an old file", "mlp")
    del old["hidden.1.running_var"]
    with pytest.raises(InputError, match=r"an old file .* lacks 'hidden.1.running_var"):
        load_strictly(network, old, "an old file", "mlp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["0", "1"]},
            r"same classes, but .*a.safetensors has 2 and digits has 10; choose the",
        ),
        (
            {"classes": [*"012345678", "ten"]},
            r"alike, but .* has 'ten', which digits has not, and lacks '9'; choose",
        ),
        (
            {"classes": [*"0123456788"]},
            r"different names to be matched by them, but .*a.* has '8' twice; choose",
        ),
        (
            {
                "input_shape": [4, 4, 4],
                "normalization": {"mean": [0] * 4, "std": [1] * 4},
            },
            r"agree on the channels, but .* takes 4 and digits has 1; choose other",
        ),
    ],
)
def test_a_member_for_other_data(
    member: Member, digits: ImageData, changes: dict[str, Any], message: str
):
    path = with_metadata(member, **changes)
    if "classes" in changes and len(changes["classes"]) == 2:
        state, metadata = load_state(path)
        state = {k: v[:2] if k.startswith("fc") else v for k, v in state.items()}
        save_state(path, state, metadata or {})
    with pytest.raises(InputError, match=message):
        load_member(path, data=digits)


def test_classes_in_another_order_are_matched_by_name(
    member: Member, digits: ImageData
):
    # that digits are named by numbers makes no difference: '10' may come before '2'
    path = with_metadata(member, classes=[*"1023456789"])
    turned = load_member(path, data=digits)
    assert turned.order == (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)
    logits = torch.randn(4, 10)
    assert torch.equal(turned.in_order(logits)[:, :2], logits[:, [1, 0]])
    assert torch.equal(turned.in_order(logits)[:, 2:], logits[:, 2:])
    assert load_member(path).order is None


def test_images_of_another_size_are_resized(tmp_path: Path, digits: ImageData):
    network = init_model("convnet,width=2", 10, (1, 12, 16), seed=0)
    info = MemberInfo(
        architecture="convnet,width=2",
        classes=digits.classes,
        input_shape=(1, 12, 16),
        normalization=digits.normalization,
    )
    path = tmp_path / "large.safetensors"
    save_member(path, network.state_dict(), info)
    large = load_member(path, data=digits)
    assert large.image_size == (8, 8)
    images = digits.test.batch(torch.arange(3))
    small = images.float() / 255
    by_hand = F.interpolate(small, (12, 16), mode="bilinear", antialias=True)
    prepared = large.prepare(images)
    assert prepared.shape == (3, 1, 12, 16)
    torch.testing.assert_close(prepared, digits.normalization(by_hand))
    torch.testing.assert_close(large.prepare(small), prepared)
    fitting = by_hand.mul(255).round().to(torch.uint8)  # images of its own size stay
    assert torch.equal(large.prepare(fitting), digits.normalization(fitting))


@pytest.fixture
def evil(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A member that asks for code, and the file which that code would write."""
    trace = tmp_path / "trace"
    lines = [
        "from pathlib import Path",
        f"Path({str(trace)!r}).write_text('imported')",
        "from metaensemble.models import build",
        "def factory(classes, input_shape):",
        "    return build('mlp,width=8', classes, input_shape)",
        "def other(classes, input_shape):",
        "    return factory(classes, input_shape)",
    ]
    (tmp_path / "evil_factory.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_factory", raising=False)
    return with_metadata(member, architecture="evil_factory:factory"), trace


@pytest.mark.parametrize("consent", [None, "mlp,width=8", "evil_factory:other"])
def test_code_that_a_file_names_is_not_imported(
    evil: tuple[Path, Path], digits: ImageData, consent: str | None
):
    path, trace = evil
    message = (
        "code named by a file is not run unless you name it, too, but .* asks for "
        "evil_factory:factory; if you trust it, add --architecture evil_factory:factory"
    )
    with pytest.raises(InputError, match=message):
        load_member(path, architecture=consent, data=digits)
    assert not trace.exists()
    assert "evil_factory" not in sys.modules


def test_code_that_the_user_names_too_is_imported(
    evil: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    path, trace = evil
    member = load_member(path, architecture="evil_factory:factory")
    assert trace.read_text() == "imported"
    assert isinstance(member.network(), nn.Module)
    monkeypatch.delitem(sys.modules, "evil_factory")


def test_a_failed_save_keeps_the_old_member(
    member: Member, monkeypatch: pytest.MonkeyPatch
):
    before = member.path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("metaensemble.core.states.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_member(member.path, member.state(), member.info)
    assert member.path.read_bytes() == before
    assert os.listdir(member.path.parent) == ["a.safetensors"]


def test_the_record_is_plain_json_in_the_header(member: Member):
    length = int.from_bytes(member.path.read_bytes()[:8], "little")
    header = json.loads(member.path.read_bytes()[8 : 8 + length])
    record = json.loads(header["__metadata__"]["metaensemble"])
    assert record["architecture"] == "mlp,width=8"
    assert record["schema_version"] == 1
