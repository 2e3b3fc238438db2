"""Members of another order of classes, or that take images of another size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.data import Augmentation, ImageData
from metaensemble.models import init_model
from metaensemble.teachers import (
    Ensemble,
    LiveTeacher,
    Member,
    MemberInfo,
    OutputCache,
    kinship,
    load_ensemble,
    load_member,
    save_member,
)

TURN = [*range(9, -1, -1)]


@pytest.fixture
def turned(tmp_path: Path, zoo: Ensemble, digits: ImageData) -> Member:
    """The first member as it would be with its classes in the opposite order."""
    member = zoo.members[0]
    state = {k: v[TURN] if k[:3] == "fc." else v for k, v in member.state().items()}
    classes = member.info.classes[::-1]
    info = member.info.model_copy(update={"classes": classes})
    path = tmp_path / "turned.safetensors"
    save_member(path, state, info)
    return load_member(path, data=digits)


@pytest.fixture
def large(tmp_path: Path, digits: ImageData) -> Member:
    """A member that takes images of 12x12 pixels."""
    network = init_model("convnet,width=2", 10, (1, 12, 12), seed=4)
    info = load_info(digits).model_copy(update={"input_shape": (1, 12, 12)})
    path = tmp_path / "large.safetensors"
    save_member(path, network.state_dict(), info)
    return load_member(path, data=digits)


def load_info(digits: ImageData) -> MemberInfo:
    return MemberInfo(
        architecture="convnet,width=2",
        classes=digits.classes,
        input_shape=digits.input_shape,
        normalization=digits.normalization,
    )


def test_matched_logits_are_those_in_the_datas_order(
    zoo: Ensemble, turned: Member, digits: ImageData, tmp_path: Path
):
    member = zoo.members[0]
    cache = OutputCache(tmp_path / "cache")
    crop = Augmentation(pad=1)
    for augmentation in (None, crop):
        own = cache.logits(member, digits.train, augmentation)
        assert torch.equal(cache.logits(turned, digits.train, augmentation), own)
    images = digits.train.batch(torch.arange(5))
    with torch.no_grad():
        rows = turned.network()(turned.prepare(images))
    torch.testing.assert_close(rows[:, TURN], cache.logits(turned, digits.train)[:5])
    live, _ = LiveTeacher(turned)(images)
    torch.testing.assert_close(live, cache.logits(member, digits.train)[:5])


def test_a_member_has_other_outputs_where_it_is_not_matched(
    turned: Member, digits: ImageData, tmp_path: Path
):
    cache = OutputCache(tmp_path / "cache")
    plain = replace(turned, order=None)
    one, two = (cache.logits(m, digits.test) for m in (turned, plain))
    assert torch.equal(one, two[:, TURN])


def test_outputs_on_resized_images(large: Member, digits: ImageData, tmp_path: Path):
    cache = OutputCache(tmp_path / "cache")
    images = digits.validation.batch(torch.arange(6))
    with torch.no_grad():
        expected = large.network()(large.prepare(images))
    assert torch.equal(cache.logits(large, digits.validation), expected)
    live, _ = LiveTeacher(large)(images)
    assert torch.equal(live, expected)


def test_files_are_fitted_to_the_first_where_there_are_no_data(
    zoo: Ensemble, turned: Member, large: Member
):
    first = zoo.members[0]
    loaded = load_ensemble([first.path, turned.path, large.path])
    assert [m.order for m in loaded.members] == [None, tuple(TURN), None]
    assert [m.image_size for m in loaded.members] == [None, None, (8, 8)]
    other = load_ensemble([turned.path, first.path])
    assert [m.order for m in other.members] == [None, tuple(TURN)]


def test_an_ensemble_is_fitted_anew(
    zoo: Ensemble, turned: Member, large: Member, digits: ImageData
):
    mixed = Ensemble((turned, large, *zoo.members))
    assert mixed.fitted_to(digits) == mixed
    bare = tuple(replace(m, order=None, image_size=None) for m in mixed.members)
    assert Ensemble(bare, "logits").fitted_to(digits) == replace(
        mixed, average="logits"
    )
    with pytest.raises(InputError, match=r"same classes, but .* has 10 and digits has"):
        mixed.fitted_to(replace(digits, classes=("a", "b")))


def test_weights_of_another_order_are_not_merged(zoo: Ensemble, turned: Member):
    message = (
        "^soups share one and one order of classes, but .*turned.safetensors and "
        ".*0.safetensors differ in theirs; choose --method kd$"
    )
    with pytest.raises(InputError, match=message):
        Ensemble((*zoo.members, turned)).one_architecture("soups share one")
    message = (
        "^soups share one and the data's order of classes, but .*turned.safetensors "
        "has them in another; choose --method kd$"
    )
    with pytest.raises(InputError, match=message):
        Ensemble((turned, turned)).one_architecture("soups share one")


def test_weights_for_images_of_another_size_are_not_merged(
    large: Member, tmp_path: Path, make_member: Callable[..., Member]
):
    small = make_member(tmp_path / "small.safetensors", 0, "convnet,width=2")
    message = (
        r"^soups share one and one input, but .*large.safetensors takes \(1, 12, 12\) "
        r"and .*small.safetensors \(1, 8, 8\) .*; choose --method kd$"
    )
    with pytest.raises(InputError, match=message):
        Ensemble((small, large)).states("soups share one")
    message = (
        "^soups share one and take the data's images as they are, but .*large.* takes "
        "12x12 pixels and they are 8x8 pixels; choose --method kd, or data of that size"
    )
    with pytest.raises(InputError, match=message):
        Ensemble((large, large)).lazy_states("soups share one")
    with pytest.raises(InputError, match="12x12 pixels and they are 8x8"):
        kinship(Ensemble((large, large)))
