import numpy as np
import torch
from sklearn.datasets import load_digits

from metaensemble.data import Augmentation, load_data
from metaensemble.data.digits import read_digits


def test_sizes_classes_and_scale():
    raw = read_digits()
    assert (len(raw.train.labels), len(raw.test.labels)) == (900, 897)
    assert raw.classes == tuple("0123456789")
    assert raw.augmentation == Augmentation(pad=1)
    images = raw.train.read(torch.arange(900)).batch(torch.arange(900))
    assert images.shape == (900, 1, 8, 8)
    assert set(images.unique().tolist()) == {round(k * 255 / 16) for k in range(17)}


def test_split_keeps_every_image_once_and_each_class_its_share():
    raw = read_digits()
    images, labels = [], []
    for source in (raw.train, raw.test):
        rows = torch.arange(len(source.labels))
        images.append(source.read(rows).batch(rows))
        labels.append(source.labels)
    theirs = np.asarray(load_digits(return_X_y=True)[0])
    ours = torch.cat(images).flatten(1).double() * 16 / 255
    assert sorted(ours.round().tolist()) == sorted(theirs.tolist())
    counts = [part.bincount() for part in labels]
    assert (counts[0] - counts[1]).abs().max() <= 2


def test_official_split_does_not_follow_the_seed():
    one, other = load_data("digits", seed=1), load_data("digits", seed=2)
    assert one.test.fingerprint == other.test.fingerprint
    assert one.train.fingerprint != other.train.fingerprint
