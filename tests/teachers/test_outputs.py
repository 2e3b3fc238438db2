import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import DiskError
from metaensemble.data import Augmentation, ImageData
from metaensemble.teachers import Ensemble, Member, OutputCache, save_member
from metaensemble.teachers import outputs as outputs_module


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a member's name whenever its network is built."""
    names: list[str] = []
    build = Member.network

    def counted(member: Member):
        names.append(member.name)
        return build(member)

    monkeypatch.setattr(Member, "network", counted)
    return names


@pytest.fixture
def cache(tmp_path: Path) -> OutputCache:
    return OutputCache(tmp_path / "cache")


def direct(member: Member, digits: ImageData, images: Tensor) -> Tensor:
    with torch.no_grad():
        return member.network()(digits.normalization(images))


def test_the_cache_gives_the_logits_of_a_direct_pass(
    zoo: Ensemble, digits: ImageData, cache: OutputCache
):
    images = digits.train.batch(torch.arange(len(digits.train)))
    expected = torch.stack([direct(m, digits, images) for m in zoo.members])
    for member, logits in zip(zoo.members, expected, strict=True):
        assert torch.equal(cache.logits(member, digits.train), logits)
    assert torch.equal(cache.ensemble_logits(zoo, digits.train), expected)
    assert expected.shape == (3, 54, 10)


def test_several_batches_are_put_in_order(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(outputs_module, "BATCH", 7)
    images = digits.train.batch(torch.arange(len(digits.train)))
    expected = direct(zoo.members[0], digits, images)
    torch.testing.assert_close(cache.logits(zoo.members[0], digits.train), expected)


def test_augmented_views_are_those_of_their_draws(
    zoo: Ensemble, digits: ImageData, cache: OutputCache
):
    member, augmentation = zoo.members[0], Augmentation(pad=1, flip=True)
    draws = augmentation.draws(len(digits.train), seed=3, view=2)
    indices = torch.arange(len(digits.train))
    images = digits.train.batch(indices, augmentation, draws)
    found = cache.logits(member, digits.train, augmentation, seed=3, view=2)
    assert torch.equal(found, direct(member, digits, images))


def test_the_network_runs_once(
    zoo: Ensemble, digits: ImageData, cache: OutputCache, runs: list[str]
):
    first = cache.logits(zoo.members[0], digits.train)
    again = cache.logits(zoo.members[0], digits.train)
    assert runs == ["0.safetensors"]
    assert torch.equal(first, again)
    other_run = OutputCache(cache.folder)
    assert torch.equal(other_run.logits(zoo.members[0], digits.train), first)
    assert runs == ["0.safetensors"]


def test_what_is_asked_and_what_is_run_are_counted(
    zoo: Ensemble, digits: ImageData, cache: OutputCache
):
    cache.logits(zoo.members[0], digits.train)
    cache.logits(zoo.members[0], digits.train)  # needed once, however often it is read
    assert (cache.images_asked, cache.images_run) == (54, 54)
    cache.logits(zoo.members[0], digits.validation)
    assert (cache.images_asked, cache.images_run) == (60, 60)
    warm = OutputCache(cache.folder)
    warm.logits(zoo.members[0], digits.train)
    warm.logits(zoo.members[1], digits.train)
    assert (warm.images_asked, warm.images_run) == (108, 54)


def test_members_look_at_the_images_together(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    monkeypatch: pytest.MonkeyPatch,
):
    read = []
    batch = type(digits.train).batch

    def counted(split, indices, *augmented):
        read.extend(indices.tolist())
        return batch(split, indices, *augmented)

    monkeypatch.setattr(type(digits.train), "batch", counted)
    crop, told = Augmentation(pad=1), []
    alone = OutputCache(cache.folder.with_name("alone"))
    first = zoo.members[0]
    expected = [alone.logits(m, digits.train, crop, view=1) for m in zoo.members]
    assert len(read) == 3 * 54
    read.clear()
    cache.logits(first, digits.train, crop, view=1)  # is not computed again
    cache.compute(zoo.members, digits.train, crop, view=1, told=told.append)
    assert len(read) == 2 * 54
    assert told == [3]
    assert cache.images_run == 3 * 54
    found = [cache.logits(m, digits.train, crop, view=1) for m in zoo.members]
    assert len(read) == 2 * 54
    assert all(map(torch.equal, found, expected))


def test_a_group_of_members_is_bounded(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    monkeypatch: pytest.MonkeyPatch,
):
    size = zoo.members[0].path.stat().st_size + 4 * 54 * 10  # and its logits
    for most, count, groups in (
        (0, 4, 3),
        (2 * size - 1, 4, 3),
        (2 * size, 4, 2),
        (3 * size, 4, 1),
        (3 * size, 2, 2),
    ):
        monkeypatch.setattr(outputs_module, "TOGETHER", most)
        monkeypatch.setattr(outputs_module, "MEMBERS_TOGETHER", count)
        found = list(outputs_module.together(zoo.members, 54))
        assert len(found) == groups
        assert [m for group in found for m in group] == list(zoo.members)
    monkeypatch.setattr(outputs_module, "TOGETHER", 2 * size)
    told: list[int] = []
    cache.compute(zoo.members, digits.train, told=told.append)
    assert told == [2, 3]
    assert list(outputs_module.together((), 54)) == []


def test_each_member_images_augmentation_seed_and_view_has_its_file(
    zoo: Ensemble, digits: ImageData, cache: OutputCache, runs: list[str]
):
    member, train = zoo.members[0], digits.train
    crop, flip = Augmentation(pad=1), Augmentation(flip=True)
    found = [
        cache.logits(member, train),
        cache.logits(zoo.members[1], train),
        cache.logits(member, train.subset(torch.arange(53, -1, -1))),
        cache.logits(member, train, crop),
        cache.logits(member, train, flip),
        cache.logits(member, train, crop, seed=1),
        cache.logits(member, train, crop, view=1),
    ]
    assert len(runs) == len(found) == len(list(cache.folder.iterdir()))
    assert len({logits.numpy().tobytes() for logits in found}) == len(found)


def test_what_changes_nothing_shares_a_file(
    zoo: Ensemble, digits: ImageData, cache: OutputCache, runs: list[str]
):
    member = zoo.members[0]
    cache.logits(member, digits.train, seed=1, view=2)  # plain images have no draws
    cache.logits(member, digits.train, Augmentation(), seed=3)
    cache.logits(member, digits.train.without_labels())
    assert len(runs) == 1
    assert cache.images_asked == 54


def test_a_member_with_other_weights_under_the_same_name_is_run_again(
    zoo: Ensemble, digits: ImageData, cache: OutputCache, runs: list[str]
):
    member = zoo.members[0]
    before = cache.logits(member, digits.train)
    other = save_member(member.path, zoo.members[1].state(), member.info)
    assert not torch.equal(cache.logits(other, digits.train), before)
    assert len(runs) == 2


def test_a_file_appears_whole_or_not_at_all(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    monkeypatch: pytest.MonkeyPatch,
):
    def half(handle, rows, **_: object) -> None:
        handle.write(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(OSError, match="no space"):
            cache.logits(zoo.members[0], digits.train)
    assert list(cache.folder.iterdir()) == []
    assert cache.logits(zoo.members[0], digits.train).shape == (54, 10)
    assert [path.suffix for path in cache.folder.iterdir()] == [".npy"]


def test_what_a_reader_does_to_the_logits_stays_off_the_disk(
    zoo: Ensemble, digits: ImageData, cache: OutputCache
):
    kept = cache.logits(zoo.members[0], digits.train).clone()
    cache.logits(zoo.members[0], digits.train).zero_()
    fresh = OutputCache(cache.folder).logits(zoo.members[0], digits.train)
    assert torch.equal(fresh, kept)


def test_members_of_two_architectures_share_a_cache(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    make_member: Callable[..., Member],
):
    path = zoo.members[0].path.with_name("c.safetensors")
    mixed = Ensemble((*zoo.members, make_member(path, 7, "convnet,width=2")))
    assert cache.ensemble_logits(mixed, digits.validation).shape == (4, 6, 10)


@pytest.mark.parametrize("split", ["validation", "train"])  # 6 and 54 rows
def test_logits_that_do_not_fit_on_the_disk_are_refused_and_leave_nothing(
    zoo: Ensemble, digits: ImageData, cache: OutputCache, split: str
):
    images = getattr(digits, split)
    size = 128 + 4 * 10 * len(images)  # header, floats
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 128, 200, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(DiskError, match="--cache may name a folder elsewhere"):
                cache.logits(zoo.members[0], images)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(cache.folder.iterdir())
    logits = cache.logits(zoo.members[0], images)
    assert [path.stat().st_size for path in cache.folder.iterdir()] == [size]
    assert torch.equal(
        logits, direct(zoo.members[0], digits, images.batch(torch.arange(len(images))))
    )


@pytest.mark.parametrize(
    ("shape", "device", "images"),
    [
        ((3, 32, 32), "cpu", 64),
        ((1, 8, 8), "cpu", 500),
        ((3, 224, 224), "cpu", 8),
        ((3, 32, 32), "cuda", 500),
    ],
)
def test_a_pass_takes_as_many_images_as_stay_in_the_cache(
    shape: tuple[int, int, int], device: str, images: int
):
    assert outputs_module.images_per_pass(shape, device) == images


def test_more_outputs_than_may_be_open_are_read_again(
    zoo: Ensemble,
    digits: ImageData,
    cache: OutputCache,
    runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    expected = OutputCache(cache.folder).ensemble_logits(zoo, digits.train)
    runs.clear()
    monkeypatch.setattr(outputs_module, "MOST_OPEN", 2)
    for _ in range(2):
        assert torch.equal(cache.ensemble_logits(zoo, digits.train), expected)
    assert len(cache._open) == 2
    assert runs == []
    assert cache.images_asked == 3 * 54  # each once
