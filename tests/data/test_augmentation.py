import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.data import Augmentation, parse_augmentation


def slow(augmentation, images, draws):
    """The readable twin: image by image, as one would explain it."""
    results = []
    for image, draw in zip(images, draws, strict=True):
        channels, height, width = image.shape
        pad = augmentation.pad
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad).byte()
        canvas[:, pad : pad + height, pad : pad + width] = image
        top, left = int(draw[0] * (2 * pad + 1)), int(draw[1] * (2 * pad + 1))
        crop = canvas[:, top : top + height, left : left + width]
        mirrored = augmentation.flip and draw[2] < 0.5
        results.append(crop.flip(2) if mirrored else crop)
    return torch.stack(results)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 12)])
def test_equals_its_slow_twin(noise, shape, pad, flip):
    images = noise(64, *shape)
    augmentation = Augmentation(pad=pad, flip=flip)
    draws = augmentation.draws(64, seed=3, view=5)
    fast = augmentation(images, draws)
    assert fast.dtype == torch.uint8
    assert torch.equal(fast, slow(augmentation, images, draws))


def test_crop_by_hand():
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    draws = torch.zeros(
        1, 8
    )  # offset 0 of 0..2: content moves down and right; mirrored
    moved = Augmentation(pad=1)(images, draws)
    assert moved.tolist() == [[[[0, 0, 0], [0, 1, 2], [0, 4, 5]]]]
    both = Augmentation(pad=1, flip=True)(images, draws)
    assert both.tolist() == [[[[0, 0, 0], [2, 1, 0], [5, 4, 0]]]]


def test_extreme_draws_stay_in_range(noise):
    images = noise(2, 1, 4, 4)
    draws = torch.tensor([[0.0] * 8, [1 - 2**-24] * 8])
    first, last = Augmentation(pad=1)(images, draws)
    assert torch.equal(first[:, 1:, 1:], images[0, :, :3, :3])
    assert torch.equal(last[:, :3, :3], images[1, :, 1:, 1:])


def test_draws_are_a_function_of_seed_and_view():
    augmentation = Augmentation(pad=1)
    draws = augmentation.draws(100, seed=1, view=2)
    assert draws.shape == (100, 8)
    assert draws.dtype == torch.float32
    assert bool(((draws >= 0) & (draws < 1)).all())
    torch.manual_seed(0)
    assert torch.equal(draws, augmentation.draws(100, seed=1, view=2))
    assert not torch.equal(draws, augmentation.draws(100, seed=1, view=3))
    assert not torch.equal(draws, augmentation.draws(100, seed=2, view=2))


def test_a_row_of_draws_decides_alone(noise):
    images = noise(20, 3, 8, 8)
    augmentation = Augmentation(pad=2, flip=True)
    draws = augmentation.draws(20, seed=0, view=0)
    chosen = torch.tensor([7, 0, 19])
    part = augmentation(images[chosen], draws[chosen])
    assert torch.equal(part, augmentation(images, draws)[chosen])


def test_identity_changes_nothing(noise):
    images = noise(4, 3, 5, 5)
    assert Augmentation().is_identity
    assert Augmentation()(images, torch.rand(4, 8)) is images
    assert not Augmentation(pad=1).is_identity
    assert not Augmentation(flip=True).is_identity


def test_flips_half():
    draws = Augmentation(flip=True).draws(10_000, seed=0, view=0)
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    share = Augmentation(flip=True)(images, draws)[:, 0, 0, 0].float().mean()
    assert share == pytest.approx(0.5, abs=0.02)


def test_refuses_draws_of_other_images(noise):
    with pytest.raises(ValueError, match="3 rows for 4 images"):
        Augmentation(pad=1)(noise(4, 1, 4, 4), torch.rand(3, 8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Augmentation()),
        ("flip", Augmentation(flip=True)),
        ("crop", Augmentation(pad=2)),
        ("crop_flip", Augmentation(pad=2, flip=True)),
        ("auto", Augmentation(pad=2)),
    ],
)
def test_parse(text, expected):
    assert parse_augmentation(text, default=Augmentation(pad=2)) == expected


def test_parse_refuses_other_words():
    with pytest.raises(InputError, match="crop_flip, auto, but is 'rotate'"):
        parse_augmentation("rotate", default=Augmentation())
