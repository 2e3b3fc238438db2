import pytest
import torch

from metaensemble.data import Normalization, TensorSplit


def test_by_hand():
    normalization = Normalization(mean=(0.5, 0.2), std=(0.25, 0.1))
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    result = normalization(images)
    assert result.dtype == torch.float32
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_of_a_split_by_hand():
    images = torch.tensor([[[[0, 255]]], [[[255, 0]]], [[[0, 0]]], [[[0, 0]]]])
    split = TensorSplit(images.byte(), torch.zeros(4, dtype=torch.long))
    normalization = Normalization.of(split)
    assert normalization.mean == pytest.approx((0.25,))
    assert normalization.std == pytest.approx((0.1875**0.5,))  # p (1 - p), p = 1/4


def test_of_equals_torch_per_channel(noise):
    images = noise(700, 3, 6, 5)  # two chunks
    images[:, 1] //= 2
    split = TensorSplit(images, torch.zeros(700, dtype=torch.long))
    normalization = Normalization.of(split)
    values = images.double() / 255
    assert normalization.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    std = values.std((0, 2, 3), correction=0).tolist()
    assert normalization.std == pytest.approx(std)
    whole = normalization(images)
    assert whole.mean((0, 2, 3)).abs().max() < 1e-5
    assert whole.std((0, 2, 3)).sub(1).abs().max() < 1e-4


def test_constant_channel_has_a_floor():
    images = torch.full((3, 1, 4, 4), 51, dtype=torch.uint8)
    split = TensorSplit(images, torch.zeros(3, dtype=torch.long))
    normalization = Normalization.of(split)
    assert normalization.mean == pytest.approx((0.2,))
    assert normalization.std == pytest.approx((1e-3,))


def test_of_reads_at_most_ten_thousand_images():
    class Counting(TensorSplit):
        seen = 0

        def batch(self, indices, augmentation=None, draws=None):
            self.seen += len(indices)
            return super().batch(indices, augmentation, draws)

    images = torch.zeros(10_500, 1, 1, 1, dtype=torch.uint8)
    split = Counting(images, torch.zeros(10_500, dtype=torch.long))
    Normalization.of(split)
    assert split.seen == 10_000


def test_refusals(noise):
    empty = TensorSplit(noise(0, 1, 2, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="is empty"):
        Normalization.of(empty)
    with pytest.raises(ValueError, match="have 2 and 1"):
        Normalization(mean=(0, 0), std=(1,))
    with pytest.raises(ValueError, match="std positive"):
        Normalization(mean=(0,), std=(0,))
    with pytest.raises(ValueError, match=r"must have 1 channels .* have 3"):
        Normalization(mean=(0,), std=(1,))(noise(2, 3, 2, 2))
