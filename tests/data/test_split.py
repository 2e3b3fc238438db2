import pytest
import torch

from metaensemble.data import Augmentation, StreamedSplit, TensorSplit, concatenate


@pytest.fixture
def split(noise):
    return TensorSplit(noise(6, 3, 4, 5), torch.arange(6))


def test_shape_length_and_batch(split):
    assert len(split) == 6
    assert split.shape == (3, 4, 5)
    batch = split.batch(torch.tensor([4, 4, 0]))
    assert torch.equal(batch, split.images[[4, 4, 0]])


def test_batch_augments_by_draws(split):
    augmentation = Augmentation(pad=1, flip=True)
    draws = augmentation.draws(6, seed=0, view=0)
    indices = torch.tensor([5, 1])
    batch = split.batch(indices, augmentation, draws[indices])
    assert torch.equal(batch, augmentation(split.images, draws)[indices])
    same = split.batch(indices, Augmentation())
    assert torch.equal(same, split.images[indices])
    with pytest.raises(ValueError, match="needs draws"):
        split.batch(indices, augmentation)


def test_subset_and_without_labels(split):
    part = split.subset(torch.tensor([3, 1]))
    assert part.labels.tolist() == [3, 1]
    assert torch.equal(part.images, split.images[[3, 1]])
    bare = part.without_labels()
    assert bare.labels.tolist() == [-1, -1]
    assert part.labels.tolist() == [3, 1]
    assert bare.images is part.images


def test_fingerprint_depends_on_images_and_order_but_not_on_labels(split):
    everything = torch.arange(6)
    assert split.subset(everything).fingerprint == split.fingerprint
    assert split.without_labels().fingerprint == split.fingerprint
    assert split.subset(everything.flip(0)).fingerprint != split.fingerprint
    assert split.subset(everything[:5]).fingerprint != split.fingerprint
    reshaped = TensorSplit(split.images.view(6, 3, 5, 4), split.labels)
    assert reshaped.fingerprint != split.fingerprint
    images = split.images.clone()
    images[2, 0, 0, 0] += 1
    assert TensorSplit(images, split.labels).fingerprint != split.fingerprint


def test_concatenate(split):
    first, second = split.subset(torch.arange(2)), split.subset(torch.arange(2, 6))
    joined = concatenate([first, second])
    assert joined.fingerprint == split.fingerprint
    assert torch.equal(joined.labels, split.labels)
    assert concatenate([split]) is split


def test_concatenate_refuses(split, noise, tmp_path):
    with pytest.raises(ValueError, match="at least one split"):
        concatenate([])
    other = TensorSplit(noise(1, 1, 4, 5), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="agree in class and image shape"):
        concatenate([split, other])
    label = torch.zeros(1, dtype=torch.long)
    streamed = StreamedSplit(tmp_path, ["a.png"], label, (3, 4, 5))
    with pytest.raises(ValueError, match="agree in class and image shape"):
        concatenate([split, streamed])


def test_refuses_other_types(noise):
    with pytest.raises(ValueError, match="one uint8 tensor"):
        TensorSplit(noise(2, 1, 2, 2).float(), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be int64"):
        TensorSplit(noise(2, 1, 2, 2), torch.zeros(3, dtype=torch.long))
