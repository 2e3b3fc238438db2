import gzip

import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data import Augmentation, load_data

LABELS = torch.tensor([0, 1, 2] * 8)
FEW = torch.tensor([2, 1, 0])


@pytest.fixture
def files(noise, idx):
    return {
        "train-images-idx3-ubyte": idx(noise(24, 1, 6, 5, 1)[:, 0]),
        "train-labels-idx1-ubyte": idx(LABELS),
        "t10k-images-idx3-ubyte": idx(noise(3, 1, 6, 5, 2)[:, 0]),
        "t10k-labels-idx1-ubyte": idx(FEW),
    }


def write(root, files, *, dots=False, zipped=False):
    for name, content in files.items():
        name = name.replace("-idx", ".idx") if dots else name
        if zipped:
            (root / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dots", [False, True])
def test_round_trip(files, noise, tmp_path, dots, zipped):
    data = load_data(write(tmp_path, files, dots=dots, zipped=zipped))
    assert data.name == tmp_path.name
    assert data.classes == ("0", "1", "2")
    assert data.input_shape == (1, 6, 5)
    assert data.augmentation == Augmentation(pad=2)
    assert torch.equal(data.test.batch(torch.arange(3)), noise(3, 1, 6, 5, 2))
    assert data.test.labels.tolist() == [2, 1, 0]
    train_images = noise(24, 1, 6, 5, 1)
    for image, label in zip(
        data.train.batch(torch.arange(22)), data.train.labels, strict=True
    ):
        row = int((train_images == image).flatten(1).all(1).nonzero())
        assert int(LABELS[row]) == int(label)


@pytest.mark.parametrize("keep", [0, 3, 10, -1])
def test_refuses_a_truncated_file(files, tmp_path, keep):
    name = "train-images-idx3-ubyte"
    files[name] = files[name][:keep]
    message = "must be an idx file of bytes in 3 dimensions|but holds 719"
    with pytest.raises(InputError, match=message):
        load_data(write(tmp_path, files))


def test_refuses_a_truncated_gzip_file(files, tmp_path):
    write(tmp_path, files, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="must be a whole gzip file"):
        load_data(tmp_path)


def test_refuses_missing_files(files, tmp_path):
    del files["t10k-labels-idx1-ubyte"]
    with pytest.raises(MissingFileError, match="test labels in a file t10k-labels"):
        load_data(write(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-labels-idx1-ubyte", LABELS[:9], "24 images and 9 labels"),
        ("train-labels-idx1-ubyte", LABELS * 2, "a label 4 and no label 1"),
        ("train-labels-idx1-ubyte", LABELS * 0, "at least 2 classes"),
        ("t10k-labels-idx1-ubyte", FEW + 1, r"classes \(3\), but the test .* label 3"),
        ("t10k-labels-idx1-ubyte", FEW[:0], "at least one, but holds 0"),
        ("t10k-images-idx3-ubyte", torch.zeros(3, 6, 6), r"\(6, 5\) and \(6, 6\)"),
        ("t10k-images-idx3-ubyte", torch.zeros(3, 30), "begins with 00 00 08 02"),
    ],
)
def test_refuses_odd_content(files, idx, tmp_path, name, values, message):
    files[name] = idx(values)
    with pytest.raises(InputError, match=message):
        load_data(write(tmp_path, files))
