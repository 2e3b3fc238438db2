import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data import Augmentation, load_data
from metaensemble.data.cifar import read_cifar

LABELS = [0, 1] * 6


@pytest.fixture
def images(noise):
    return noise(12, 3, 32, 32)


def write_folder(root, files):
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def write_tar(path, files, folder):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", ["folder", "parent", "tarball"])
@pytest.mark.parametrize(
    ("kind", "folder", "classes"),
    [
        (10, "cifar-10-batches-py", ("airplane", "automobile")),
        (100, "cifar-100-python", ("apple", "bear")),
    ],
)
def test_round_trip(cifar_files, images, tmp_path, form, kind, folder, classes):
    files = cifar_files(images, LABELS, kind)
    if form == "tarball":
        path = write_tar(tmp_path / "cifar.tar.gz", files, folder)
    else:
        path = write_folder(tmp_path / folder, files)
        path = tmp_path if form == "parent" else path
    raw = read_cifar(path)
    assert raw.name == f"cifar{kind}"
    assert raw.classes == classes
    assert raw.augmentation == Augmentation(pad=4, flip=True)
    for source, rows in ((raw.train, slice(0, 10)), (raw.test, slice(10, 12))):
        everything = torch.arange(len(source.labels))
        found = source.read(everything).batch(everything)
        assert torch.equal(found, images[rows])
        assert source.labels.tolist() == LABELS[rows]
    data = load_data(path, validation_fraction=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cifar.tar.gz" if form == "tarball" else folder
    ]  # nothing is extracted


def test_reads_a_pickle_of_python_2(cifar_files, images, tmp_path):
    """The published files name numpy's old module, and keys and data are `str`."""
    data = images[:2].flatten(1).numpy().tobytes()
    content = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02"
        b"cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tbU\x06labelsq\x07]q\x08(K\x00K\x01eu."
    )
    files = cifar_files(images, LABELS)
    files["data_batch_1"] = content
    raw = read_cifar(write_folder(tmp_path / "c", files))
    found = raw.train.read(torch.arange(10)).batch(torch.arange(10))
    assert torch.equal(found, images[:10])


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_code_in_a_pickle_is_refused_and_not_run(
    cifar_files, images, tmp_path, name, protocol
):
    marker = tmp_path / "executed"
    files = cifar_files(images, LABELS)
    value = {b"data": Payload(marker), b"labels": [0]}
    files[name] = pickle.dumps(value, protocol=protocol)
    path = write_folder(tmp_path / "c", files)
    message = rf"{name} names '(posix|nt)\.system', which could execute code"
    with pytest.raises(InputError, match=message):
        load_data(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"ccopy_reg\n_reconstructor\n.",
    ],
)
def test_other_globals_are_refused(cifar_files, images, tmp_path, content):
    files = cifar_files(images, LABELS) | {"test_batch": content}
    with pytest.raises(InputError, match="which could execute code"):
        load_data(write_folder(tmp_path / "c", files))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_refuses_a_truncated_pickle(cifar_files, images, tmp_path, share):
    files = cifar_files(images, LABELS)
    content = files["data_batch_2"]
    files["data_batch_2"] = content[: int(share * len(content))]
    with pytest.raises(InputError, match="data_batch_2 must be a whole pickle"):
        load_data(write_folder(tmp_path / "c", files))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_refuses_a_truncated_tarball(cifar_files, images, tmp_path, share):
    files = cifar_files(images, LABELS)
    path = write_tar(tmp_path / "cifar.tar.gz", files, "cifar-10-batches-py")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="must be a whole tarball"):
        load_data(path)


def test_refuses_missing_files(cifar_files, images, tmp_path):
    files = cifar_files(images, LABELS)
    del files["data_batch_4"]
    message = r"batches\.meta, but .* lacks data_batch_4"
    with pytest.raises(MissingFileError, match=message):
        load_data(write_folder(tmp_path / "c", files))
    files = cifar_files(images, LABELS, 100)
    del files["test"]
    with pytest.raises(MissingFileError, match="lacks test;"):
        load_data(write_tar(tmp_path / "c.tgz", files, "cifar-100-python"))


DATA = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "must hold a dict, but holds a list"),
        ({"data": DATA}, "must have data and labels .* has only data"),
        ({"data": DATA, "labels": [0, 2]}, r"classes \(2\), but .* label 2 in row 1"),
        ({"data": DATA, "labels": [0, -1]}, "label -1 in row 1"),
        ({"data": DATA, "labels": [0]}, "2 images and 1 labels"),
        ({"data": DATA, "labels": ["a", "b"]}, "labels must be integers"),
        ({"data": DATA, "labels": [0.5, 1]}, "labels must be a list of integers"),
        ({"data": DATA[:, :9], "labels": [0, 1]}, r"is uint8 of shape \(2, 9\)"),
        ({"data": DATA.astype(float), "labels": [0, 1]}, "is float64 of shape"),
        ({"data": b"x", "labels": [0, 1]}, "is bytes of shape"),
        (
            {"data": DATA[:0], "labels": []},
            "data_batch_5 must hold images, but holds none",
        ),
    ],
)
def test_refuses_odd_batches(cifar_files, images, tmp_path, value, message):
    files = cifar_files(images, LABELS)
    files["data_batch_5"] = pickle.dumps(value, protocol=4)
    with pytest.raises(InputError, match=message):
        load_data(write_folder(tmp_path / "c", files))


def test_refuses_odd_class_names(cifar_files, images, tmp_path):
    files = cifar_files(images, LABELS)
    files["batches.meta"] = pickle.dumps({b"names": []}, protocol=2)
    with pytest.raises(InputError, match=r"label_names or .*, but has only names"):
        load_data(write_folder(tmp_path / "c", files))
