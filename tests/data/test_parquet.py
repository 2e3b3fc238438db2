import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data import Augmentation, load_data
from metaensemble.data.decode import decode

TRAIN = "train-00000-of-00001.parquet"
TEST = "test-00000-of-00001.parquet"
LABELS = [0, 1] * 12
FEW = [1, 0, 1, 0]


@pytest.fixture
def write(parquet_file, noise):
    """A folder of 24 training and 4 test images of 16 x 16."""

    def make(root, train=LABELS, test=FEW, test_name=TEST, channels=3, **options):
        train_images = noise(len(train), channels, 16, 16, 1)
        test_images = noise(len(test), channels, 16, 16, 2)
        parquet_file(root / TRAIN, train_images, train, **options)
        parquet_file(root / test_name, test_images, test, **options)
        return root, train_images, test_images

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"names": ["cat", "dog"]},
        {
            "image_column": "image",
            "label_column": "fine_label",
            "names": ["cat", "dog"],
        },
        {"raw": True, "label_column": "labels"},
        {"test_name": "validation.parquet"},
        {"channels": 1},
    ],
)
@pytest.mark.parametrize("folder", ["", "data"])
def test_round_trip(write, tmp_path, options, folder):
    _, train_images, test_images = write(tmp_path / "pets" / folder, **options)
    data = load_data(tmp_path / "pets")
    assert data.name == "pets"
    assert data.classes == tuple(options.get("names", ["0", "1"]))
    colour = options.get("channels", 3) == 3
    assert data.augmentation == Augmentation(pad=2, flip=colour)
    everything = torch.arange(4)
    assert torch.equal(data.test.batch(everything), test_images)
    assert data.test.labels.tolist() == FEW
    for split in (data.train, data.validation):
        batch = split.batch(torch.arange(len(split)))
        for image, label in zip(batch, split.labels, strict=True):
            row = int((train_images == image).flatten(1).all(1).nonzero())
            assert LABELS[row] == int(label)


def test_several_files_are_one_split(write, parquet_file, noise, tmp_path):
    root, train_images, _ = write(tmp_path)
    more = noise(6, 3, 16, 16, 9)
    parquet_file(root / "train-00001-of-00002.parquet", more, [1] * 6)
    data = load_data(root)
    both = torch.cat([data.train.batch(torch.arange(len(data.train)))])
    rest = data.validation.batch(torch.arange(len(data.validation)))
    found = sorted(torch.cat([both, rest]).flatten(1).tolist())
    assert found == sorted(torch.cat([train_images, more]).flatten(1).tolist())


def test_only_needed_rows_are_decoded(write, tmp_path, monkeypatch):
    root, _, _ = write(tmp_path)
    seen = []
    monkeypatch.setattr(
        "metaensemble.data.parquet.decode",
        lambda *arguments: seen.append(1) or decode(*arguments),
    )
    load_data(root, limit_train=10, validation_fraction=0.2, unlabelled=False)
    assert len(seen) == 10 + 4


def test_image_size(write, tmp_path):
    root, _, _ = write(tmp_path)
    assert load_data(root, image_size=8).input_shape == (3, 8, 8)


def test_refuses_a_missing_test_file(write, tmp_path):
    root, _, _ = write(tmp_path)
    (root / TEST).unlink()
    with pytest.raises(MissingFileError, match=r"nothing matches test\*\.parquet"):
        load_data(root)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_refuses_a_truncated_file(write, tmp_path, keep):
    root, _, _ = write(tmp_path)
    (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:keep])
    with pytest.raises(InputError, match="must be a whole parquet file"):
        load_data(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, "named img or image, but .* picture, label"),
        ({"label_column": "kind"}, "named label or fine_label or labels, but .* kind"),
    ],
)
def test_refuses_missing_columns(write, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load_data(write(tmp_path, **options)[0])


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (LABELS, [0, 1, 2, 0], {}, r"number of classes \(2\), but the test .*label 2"),
        ([*LABELS, 2], FEW, {"names": ["a", "b"]}, r"the train .*label 2 in row 24"),
        (LABELS, [0, -1, 0, 1], {}, r"the label -1 in row 1 \(hidden labels\?\)"),
        ([*LABELS, -1], FEW, {}, "the label -1 in row 24"),
        ([*LABELS, 7], FEW, {}, "a label 7 and no label 2"),
        ([*LABELS, 2**60], FEW, {}, "and no label 2"),
        ([0] * 24, [0] * 4, {}, "at least 2 classes"),
        (LABELS, FEW, {"names": ["a", "a"]}, "names 2 classes 'a'"),
        ([0.5] * 24, FEW, {}, "label column of .* holds double"),
        ([*LABELS, None], FEW, {}, "holds 1 nulls"),
        (LABELS, [], {}, "test split of .* holds none"),
    ],
)
def test_refuses_odd_labels(write, tmp_path, train, test, options, message):
    with pytest.raises(InputError, match=message):
        load_data(write(tmp_path, train, test, **options)[0])


def test_refuses_an_unreadable_image(write, tmp_path):
    root, _, _ = write(tmp_path)
    cells = pa.array([{"bytes": b"junk"}] * 24, pa.struct({"bytes": pa.binary()}))
    pq.write_table(pa.table({"img": cells, "label": LABELS}), root / TRAIN)
    with pytest.raises(InputError, match=r"row 0 of .*train.*parquet is not"):
        load_data(root)


def test_refuses_images_that_are_not_embedded(write, tmp_path):
    root, _, _ = write(tmp_path)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": "a.png"}] * 24, kind)
    pq.write_table(pa.table({"img": cells, "label": LABELS}), root / TRAIN)
    with pytest.raises(InputError, match=r"row 0 of .* has no bytes"):
        load_data(root)
    pq.write_table(pa.table({"img": ["a.png"] * 24, "label": LABELS}), root / TRAIN)
    with pytest.raises(InputError, match=r"images must be bytes, .* holds string"):
        load_data(root)


def test_refuses_broken_metadata_and_does_without_any(write, tmp_path):
    root, _, _ = write(tmp_path)
    table = pq.read_table(root / TRAIN)
    odd = table.replace_schema_metadata({"huggingface": json.dumps({"info": None})})
    pq.write_table(odd, root / TRAIN)
    assert load_data(root).classes == ("0", "1")
    broken = table.replace_schema_metadata({"huggingface": "{"})
    pq.write_table(broken, root / TRAIN)
    with pytest.raises(InputError, match="must be a whole parquet file"):
        load_data(root)


def test_validation_files_beside_test_are_the_validation_split(
    write, parquet_file, noise, tmp_path
):
    root, *_ = write(tmp_path / "pets")
    images = noise(len(FEW), 3, 16, 16, 3)
    parquet_file(root / "validation-00000-of-00001.parquet", images, FEW)
    data = load_data(root)
    assert len(data.train) == len(LABELS)
    assert torch.equal(data.validation.batch(torch.arange(len(FEW))), images)
    assert len(data.test) == len(FEW)
