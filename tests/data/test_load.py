import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data import Augmentation, Normalization, load_data


def everything(*splits):
    images = [s.batch(torch.arange(len(s))).flatten(1) for s in splits]
    return sorted(torch.cat(images).tolist())


def test_default_splits():
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (810, 90, 897)
    assert data.unlabelled is None
    assert data.num_classes == 10
    assert data.input_shape == (1, 8, 8)
    assert data.augmentation == Augmentation(pad=1)
    assert data.normalization == Normalization.of(data.train)


def test_budget_and_unlabelled_rest_are_the_train_set():
    whole = load_data("digits")
    data = load_data("digits", limit_train=300, validation_fraction=0.2)
    assert data.unlabelled is not None
    sizes = len(data.train), len(data.validation), len(data.unlabelled)
    assert sizes == (240, 60, 600)
    assert set(data.unlabelled.labels.tolist()) == {-1}
    assert int(data.train.labels.min()) >= 0
    parts = everything(data.train, data.validation, data.unlabelled)
    assert parts == everything(whole.train, whole.validation)
    assert data.test.fingerprint == whole.test.fingerprint
    assert load_data("digits", limit_train=300, unlabelled=False).unlabelled is None


def test_a_larger_budget_begins_with_the_smaller_one():
    small = load_data("digits", limit_train=100, validation_fraction=0.1)
    large = load_data("digits", limit_train=200, validation_fraction=0.1)
    first = large.train.subset(torch.arange(90))
    assert first.fingerprint == small.train.fingerprint


def test_splits_are_a_function_of_the_seed():
    one, same, other = (load_data("digits", seed=seed) for seed in (1, 1, 2))
    assert one.train.fingerprint == same.train.fingerprint
    assert one.validation.fingerprint == same.validation.fingerprint
    assert torch.equal(one.train.labels, same.train.labels)
    assert one.train.fingerprint != other.train.fingerprint


def test_augment():
    augmentation = load_data("digits", augment="crop_flip").augmentation
    assert augmentation == Augmentation(pad=1, flip=True)
    assert load_data("digits", augment="none").augmentation.is_identity
    with pytest.raises(InputError, match="is 'rotate'"):
        load_data("digits", augment="rotate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train": 0}, "between 1 and the 900 training images .* is 0"),
        ({"limit_train": 901}, "between 1 and the 900 training images .* is 901"),
        ({"validation_fraction": 0.0}, r"in \(0, 0\.5\], but is 0\.0"),
        ({"validation_fraction": 0.6}, r"in \(0, 0\.5\], but is 0\.6"),
        ({"validation_fraction": float("nan")}, "but is nan"),
        ({"limit_train": 10}, "at least 2 images, but 10 training images leave it 1"),
        ({"image_size": 0}, "image_size must be at least 1, but is 0"),
        ({"image_size": 32}, "but digits has images of 8 x 8; leave out image_size"),
        ({"stream": True}, "only an image folder can be streamed, but digits"),
    ],
)
def test_refuses_values_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        load_data("digits", **options)


def test_own_size_may_be_stated():
    assert load_data("digits", image_size=8, stream=False).input_shape == (1, 8, 8)


def test_refuses_unknown_data(tmp_path):
    missing = tmp_path / "nothing"
    with pytest.raises(MissingFileError, match="data must be digits, an image folder"):
        load_data(missing)
    with pytest.raises(InputError, match="is none of them; arrange it"):
        load_data(tmp_path)
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is none of them"):
        load_data(str(tmp_path / "data.zip"))


def test_classes_in_another_order():
    plain = load_data("digits", limit_train=60)
    names = ("3", "1", "0", "2", *"987654")
    data = load_data("digits", limit_train=60, classes=names)
    assert data.classes == names
    for mine, theirs in (
        (data.train, plain.train),
        (data.validation, plain.validation),
        (data.test, plain.test),
    ):
        told = [names[label] for label in mine.labels]
        assert told == [plain.classes[label] for label in theirs.labels]
        assert mine.fingerprint == theirs.fingerprint
    assert data.unlabelled is not None
    assert set(data.unlabelled.labels.tolist()) == {-1}


@pytest.mark.parametrize("names", [["1", "2"], [*"0123456788"], [*"012345678x"]])
def test_classes_that_are_not_the_datas(names: list[str]):
    message = r"^--classes must be the 10 classes of digits .* its own are '0', '1', "
    with pytest.raises(InputError, match=message):
        load_data("digits", limit_train=60, classes=names)
