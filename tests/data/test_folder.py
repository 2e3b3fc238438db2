import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data import Augmentation, StreamedSplit, TensorSplit, load_data


@pytest.fixture
def colours(noise):
    """Two classes, 12 + 12 training images and 3 + 3 test images of 16 x 20."""

    def make(channels: int = 3):
        return {
            "train": {
                "zebra": noise(12, channels, 16, 20, 1),
                "ant": noise(12, channels, 16, 20, 2),
            },
            "test": {
                "zebra": noise(3, channels, 16, 20, 3),
                "ant": noise(3, channels, 16, 20, 4),
            },
        }

    return make


def test_round_trip(colours, image_folder):
    splits = colours()
    data = load_data(image_folder(splits))
    assert data.name == "pictures"
    assert data.classes == ("ant", "zebra")
    assert data.input_shape == (3, 16, 20)
    assert data.augmentation == Augmentation(pad=2, flip=True)
    assert isinstance(data.test, TensorSplit)
    expected = torch.cat([splits["test"]["ant"], splits["test"]["zebra"]])
    assert torch.equal(data.test.images, expected)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_grey_images_have_one_channel(colours, image_folder):
    data = load_data(image_folder(colours(channels=1)))
    assert data.input_shape == (1, 16, 20)
    assert data.augmentation == Augmentation(pad=2)


@pytest.mark.parametrize("name", ["val", "valid"])
def test_validation_folder_stands_in_for_test(colours, image_folder, name):
    splits = colours()
    splits[name] = splits.pop("test")
    assert len(load_data(image_folder(splits)).test) == 6


@pytest.mark.parametrize("name", ["val", "valid"])
def test_a_validation_folder_beside_test_is_the_validation_split(
    colours, image_folder, noise, name
):
    splits = colours()
    splits[name] = {own: noise(2, 3, 16, 20) for own in splits["train"]}
    root = image_folder(splits)
    data = load_data(root)
    assert len(data.test) == 6
    assert len(data.validation) == 2 * data.num_classes
    assert len(data.train) == sum(len(own) for own in splits["train"].values())
    assert data.validation.labels.tolist() == sorted(data.validation.labels.tolist())
    less = load_data(root, limit_train=5)
    assert len(less.train) == 5
    assert len(less.validation) == 2 * data.num_classes


def test_a_validation_folder_must_have_the_classes(colours, image_folder, noise):
    splits = colours()
    splits["val"] = {"ant": noise(1, 3, 16, 20)}
    with pytest.raises(InputError, match="train and val must have the same classes"):
        load_data(image_folder(splits))


def test_sizes(colours, image_folder, noise):
    splits = colours()
    splits["test"]["ant"] = noise(3, 3, 17, 20)
    path = image_folder(splits)
    assert load_data(path, limit_train=20).input_shape == (3, 224, 224)
    assert load_data(path, image_size=8).input_shape == (3, 8, 8)


def test_many_pixels_are_streamed(colours, image_folder, monkeypatch):
    path = image_folder(colours())
    monkeypatch.setattr("metaensemble.data.folder.MEMORY_BUDGET", 30 * 3 * 16 * 20)
    assert isinstance(load_data(path).train, TensorSplit)
    monkeypatch.setattr("metaensemble.data.folder.MEMORY_BUDGET", 30 * 3 * 16 * 20 - 1)
    assert isinstance(load_data(path).train, StreamedSplit)
    assert isinstance(load_data(path, stream=False).train, TensorSplit)


def test_other_files_and_hidden_folders_are_passed_over(colours, image_folder):
    path = image_folder(colours())
    (path / "train/ant/readme.txt").write_text("no image")
    (path / "train/ant/.hidden.png").write_text("no image")
    (path / "train/.cache").mkdir()
    (path / "train/ant/more").mkdir()
    (path / "train/ant/011.png").rename(path / "train/ant/more/011.png")
    data = load_data(path)
    assert len(data.train) + len(data.validation) == 24


def test_refuses_one_class(colours, image_folder):
    splits = colours()
    del splits["train"]["ant"], splits["test"]["ant"]
    with pytest.raises(InputError, match=r"at least 2 classes, but .*train has 1"):
        load_data(image_folder(splits))


@pytest.mark.parametrize(("here", "there"), [("train", "test"), ("test", "train")])
def test_refuses_different_classes(colours, image_folder, noise, here, there):
    splits = colours()
    splits[here]["bee"] = noise(2, 3, 16, 20)
    with pytest.raises(InputError, match=f"'bee' of {here} is missing in {there}"):
        load_data(image_folder(splits))


def test_refuses_an_empty_class_folder(colours, image_folder):
    path = image_folder(colours())
    (path / "train/bee").mkdir()
    with pytest.raises(InputError, match="train/bee holds none"):
        load_data(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_names_an_unreadable_image(colours, image_folder, content):
    path = image_folder(colours())
    (path / "train/ant/005.png").write_bytes(content)
    with pytest.raises(InputError, match=r"train/ant/005\.png is not"):
        load_data(path)


def test_names_a_truncated_image(colours, image_folder):
    path = image_folder(colours())
    file = path / "train/ant/005.png"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"train/ant/005\.png is not"):
        load_data(path)


def test_refuses_a_missing_test_folder(colours, image_folder):
    splits = colours()
    del splits["test"]
    with pytest.raises(MissingFileError, match="none of test, val, valid; make"):
        load_data(image_folder(splits))
