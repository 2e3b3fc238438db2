import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.data import Augmentation, StreamedSplit, concatenate, load_data

AUGMENTATION = Augmentation(pad=2, flip=True)


@pytest.fixture
def folder(noise, image_folder):
    return image_folder(
        {
            "train": {"a": noise(12, 3, 16, 16, 1), "b": noise(12, 3, 16, 16, 2)},
            "test": {"a": noise(2, 3, 16, 16, 3), "b": noise(2, 3, 16, 16, 4)},
        }
    )


@pytest.fixture
def split(folder):
    paths = [f"train/{name}/{k:03}.png" for name in "ab" for k in range(3)]
    return StreamedSplit(folder, paths, torch.tensor([0, 0, 0, 1, 1, 1]), (3, 16, 16))


def test_equals_memory_for_evaluation(folder):
    memory = load_data(folder, stream=False, limit_train=20)
    streamed = load_data(folder, stream=True, limit_train=20)
    for name in ("train", "validation", "test", "unlabelled"):
        one, other = getattr(memory, name), getattr(streamed, name)
        assert isinstance(other, StreamedSplit)
        everything = torch.arange(len(one))
        assert torch.equal(one.batch(everything), other.batch(everything))
        assert torch.equal(one.labels, other.labels)
    assert memory.normalization == streamed.normalization


def test_equal_draws_give_equal_images(split):
    draws = AUGMENTATION.draws(6, seed=0, view=1)
    everything = torch.arange(6)
    images = split.batch(everything, AUGMENTATION, draws)
    assert images.shape == (6, 3, 16, 16)
    assert torch.equal(images, split.batch(everything, AUGMENTATION, draws))
    chosen = torch.tensor([4, 2])
    part = split.batch(chosen, AUGMENTATION, draws[chosen])
    assert torch.equal(part, images[chosen])
    other = AUGMENTATION.draws(6, seed=0, view=2)
    assert not torch.equal(images, split.batch(everything, AUGMENTATION, other))
    assert not torch.equal(images, split.batch(everything))
    assert torch.equal(split.batch(chosen, Augmentation()), split.batch(chosen))


def test_subset_concatenate_and_without_labels(split):
    first, second = split.subset(torch.tensor([5, 0])), split.subset(torch.tensor([3]))
    joined = concatenate([first, second])
    assert joined.labels.tolist() == [1, 0, 1]
    expected = split.batch(torch.tensor([5, 0, 3]))
    assert torch.equal(joined.batch(torch.arange(3)), expected)
    assert joined.without_labels().labels.tolist() == [-1, -1, -1]


def test_fingerprint_reads_paths_sizes_and_order(split, folder, tmp_path):
    again = split.subset(torch.arange(6))
    assert again.fingerprint == split.fingerprint
    assert split.without_labels().fingerprint == split.fingerprint
    assert split.subset(torch.arange(5)).fingerprint != split.fingerprint
    assert split.subset(torch.arange(6).flip(0)).fingerprint != split.fingerprint
    folder.rename(tmp_path / "moved")
    moved = StreamedSplit(tmp_path / "moved", split.paths, split.labels, split.shape)
    assert moved.fingerprint == split.fingerprint
    with (tmp_path / "moved/train/a/000.png").open("ab") as handle:
        handle.write(b"x")
    grown = StreamedSplit(tmp_path / "moved", split.paths, split.labels, split.shape)
    assert grown.fingerprint != split.fingerprint


def test_refusals(split, folder):
    with pytest.raises(ValueError, match="needs draws"):
        split.batch(torch.arange(2), AUGMENTATION)
    with pytest.raises(ValueError, match="2 paths and 3 labels"):
        StreamedSplit(folder, ["a", "b"], torch.arange(3), (3, 16, 16))
    elsewhere = StreamedSplit(folder / "x", ["a"], torch.arange(1), (3, 16, 16))
    with pytest.raises(ValueError, match="below one folder"):
        concatenate([split, elsewhere])
    (folder / "train/a/001.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a/001\.png is not"):
        split.batch(torch.arange(6))
    (folder / "train/a/001.png").unlink()
    with pytest.raises(InputError, match=r"a/001\.png cannot be found; put it back"):
        split.subset(torch.arange(6)).fingerprint  # noqa: B018
