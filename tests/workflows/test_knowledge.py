"""What each member of a zoo sees of the training images."""

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.data import UNKNOWN, Split, TensorSplit
from metaensemble.workflows.teach import EVERYTHING, Knowledge

CLASSES = 10
SEEDS = range(5)


@pytest.fixture
def train() -> TensorSplit:
    """1000 images, 100 of each class; the first two pixels number the image."""
    number = torch.arange(1000)
    images = torch.stack([number // 256, number % 256], 1).to(torch.uint8)
    return TensorSplit(images.view(-1, 1, 1, 2), number % CLASSES)


def numbers(split: Split) -> list[int]:
    """Return which of the 1000 images a split holds."""
    pixels = split.batch(torch.arange(len(split))).flatten(1).long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


def test_by_default_a_member_sees_the_very_split(train):
    assert EVERYTHING.of(train, CLASSES, 0) is train
    assert Knowledge() == EVERYTHING


@pytest.mark.parametrize(
    ("subset", "count"), [(0.5, 500), (0.2, 200), (0.0014, 1), (1e-9, 1)]
)
def test_a_subset_has_its_size(train, subset, count):
    seen = numbers(Knowledge(subset).of(train, CLASSES, 0))
    assert len(seen) == len(set(seen)) == count


def test_a_subset_keeps_the_labels(train):
    part = Knowledge(0.5).of(train, CLASSES, 0)
    assert part.labels.tolist() == [number % CLASSES for number in numbers(part)]


@pytest.mark.parametrize(
    "knowledge",
    [Knowledge(0.5), Knowledge(classes_each=4), Knowledge(label_noise=0.5)],
    ids=["subset", "classes", "noise"],
)
def test_seeds_differ_and_repeat(train, knowledge):
    def seen(seed: int) -> tuple[tuple[int, ...], ...]:
        part = knowledge.of(train, CLASSES, seed)
        return tuple(numbers(part)), tuple(part.labels.tolist())

    assert len({seen(seed) for seed in SEEDS}) == len(SEEDS)
    assert [seen(seed) for seed in SEEDS] == [seen(seed) for seed in SEEDS]


@pytest.mark.parametrize("count", [1, 3, CLASSES])
def test_a_member_sees_all_images_of_so_many_classes(train, count):
    for seed in SEEDS:
        part = Knowledge(classes_each=count).of(train, CLASSES, seed)
        assert len(part.labels.unique()) == count
        assert len(part) == 100 * count
        assert part.labels.tolist() == [number % CLASSES for number in numbers(part)]


def test_a_subset_is_one_of_the_images_of_its_classes(train):
    of_classes = Knowledge(classes_each=3).of(train, CLASSES, 0)
    part = Knowledge(0.5, classes_each=3).of(train, CLASSES, 0)
    assert len(part) == 150
    assert set(numbers(part)) < set(numbers(of_classes))


def test_noise_changes_its_share_of_the_labels_and_nothing_else(train):
    before = train.labels.clone()
    for seed in SEEDS:
        noisy = Knowledge(label_noise=0.4).of(train, CLASSES, seed)
        assert numbers(noisy) == list(range(1000))
        # 400 are drawn anew, 360 +- 6 of them wrong: one in ten hits the true class
        assert (noisy.labels != before).sum().item() == pytest.approx(360, abs=30)
        assert torch.equal(train.labels, before)


def test_noise_is_uniform_over_all_classes():
    train = TensorSplit(
        torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8),
        torch.full((10_000,), 3),
    )
    noisy = Knowledge(label_noise=0.5).of(train, CLASSES, 0)
    counts = noisy.labels.bincount(minlength=CLASSES)
    counts[3] -= 5000  # left as they were
    assert counts.sum() == 5000
    assert counts.min() > 400  # 500 +- 21 each
    assert counts.max() < 600


def test_noise_may_name_a_class_that_the_member_does_not_see(train):
    part = Knowledge(classes_each=2, label_noise=0.5).of(train, CLASSES, 0)
    assert len(part) == 200
    assert len(part.labels.unique()) == CLASSES


def test_noise_leaves_unknown_labels(train):
    unknown = torch.arange(1000) < 500
    half = train.with_labels(train.labels.masked_fill(unknown, UNKNOWN))
    noisy = Knowledge(label_noise=0.8).of(half, CLASSES, 0).labels
    assert torch.equal(noisy == UNKNOWN, unknown)
    assert (noisy != half.labels).sum().item() == pytest.approx(360, abs=30)
    bare = train.without_labels()
    assert (Knowledge(label_noise=0.8).of(bare, CLASSES, 0).labels == UNKNOWN).all()


def test_more_classes_than_there_are(train):
    with pytest.raises(
        InputError,
        match="--classes-each must be at most the number of classes, 10, but is 11; lo",
    ):
        Knowledge(classes_each=11).of(train, CLASSES, 0)


def test_no_image_left(train):
    with pytest.raises(
        InputError,
        match="must see at least one image, but the 3 classes that seed 7 draws have "
        "none; raise --classes-each",
    ):
        Knowledge(classes_each=3).of(train.without_labels(), CLASSES, 7)


def test_with_labels_shares_the_images(train):
    other = train.with_labels(train.labels.flip(0))
    assert isinstance(other, TensorSplit)
    assert other.images is train.images
    assert other.fingerprint == train.fingerprint
    assert other.labels.tolist() == train.labels.tolist()[::-1]
    assert train.labels.tolist() == [number % CLASSES for number in range(1000)]


@pytest.mark.parametrize("labels", [torch.zeros(1000), torch.arange(999)])
def test_with_labels_refuses_others(train, labels):
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(1000,\)"):
        train.with_labels(labels)
