import io

import numpy as np
import pytest
import torch
from PIL import Image

from metaensemble.core.errors import InputError
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.decode import agreed_shape, decode, decode_all

CROP = Augmentation(pad=1)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def blank(width: int, height: int, mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (width, height)))


@pytest.mark.parametrize(
    ("images", "image_size", "expected"),
    [
        ([blank(6, 4), blank(6, 4)], None, (3, 4, 6)),
        ([blank(6, 4, "L"), blank(6, 4, "L")], None, (1, 4, 6)),
        ([blank(6, 4, "L"), blank(6, 4)], None, (3, 4, 6)),
        ([blank(6, 4), blank(4, 6)], None, (3, 224, 224)),
        ([blank(6, 4, "L"), blank(4, 6, "L")], None, (1, 224, 224)),
        ([blank(513, 9)], None, (3, 224, 224)),
        ([blank(512, 9)], None, (3, 9, 512)),
        ([blank(6, 4), blank(4, 6)], 16, (3, 16, 16)),
    ],
)
def test_agreed_shape(images, image_size, expected):
    assert agreed_shape([(i, "x") for i in images], image_size) == expected


def test_same_size_is_taken_as_it_is(noise, png):
    image = noise(1, 3, 96, 80)[0]
    assert np.array_equal(decode(png(image), "x", (3, 96, 80)), image.numpy())


def test_small_target_is_resized_to_the_short_side():
    # 8 x 16, left to right 0, 1, ..., 15: half the size keeps the middle columns 4..11
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 10, (8, 1))
    result = decode(encoded(Image.fromarray(ramp)), "x", (1, 4, 4))
    assert result.shape == (1, 4, 4)
    np.testing.assert_allclose(result[0, 1], [45, 65, 85, 105], atol=6)


def test_large_target_leaves_a_margin():
    # a frame of an eighth of 128 pixels is what 256/224 crops away, all but a sixteenth
    square = np.zeros((128, 128), dtype=np.uint8)
    square[8:-8, 8:-8] = 200
    result = decode(encoded(Image.fromarray(square)), "x", (1, 112, 112))
    assert int(result.min()) == 200
    whole = decode(encoded(Image.fromarray(square)), "x", (1, 64, 64))
    assert int(whole.min()) == 0


def test_random_crop_is_decided_by_its_draws(noise, png):
    content = png(noise(1, 3, 20, 30)[0])
    draws = CROP.draws(2, seed=0, view=0).numpy()
    first = decode(content, "x", (3, 16, 16), CROP, draws[0])
    assert np.array_equal(first, decode(content, "x", (3, 16, 16), CROP, draws[0]))
    assert not np.array_equal(first, decode(content, "x", (3, 16, 16), CROP, draws[1]))


def test_random_crop_of_the_whole_and_of_a_corner(png):
    image = torch.zeros(1, 60, 60, dtype=torch.uint8)
    image[:, :18, :18] = 255  # sqrt(0.08) * 60 is 16.97
    square = np.zeros(8, dtype=np.float32)
    square[4] = 0.5  # aspect ratio 1
    corner = decode(png(image), "x", (1, 10, 10), CROP, square)
    assert int(corner.min()) > 200
    square[3] = 1.0  # all of the area
    whole = decode(png(image), "x", (1, 60, 60), CROP, square)
    assert np.array_equal(whole, image.numpy())


def test_flip_mirrors(noise, png):
    image = noise(1, 3, 6, 6)[0]
    flip = Augmentation(flip=True)
    heads, tails = np.full(8, 0.4, np.float32), np.full(8, 0.6, np.float32)
    mirrored = decode(png(image), "x", (3, 6, 6), flip, heads)
    assert np.array_equal(mirrored, image.flip(2).numpy())
    straight = decode(png(image), "x", (3, 6, 6), flip, tails)
    assert np.array_equal(straight, image.numpy())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_modes_become_rgb_or_grey(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    content = encoded(Image.new(mode, (5, 4)), kind)
    assert decode(content, "x", (3, 4, 5)).shape == (3, 4, 5)
    assert decode(content, "x", (1, 4, 5)).shape == (1, 4, 5)


def test_jpeg_drafts_keep_the_picture():
    ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (480, 1))
    content = encoded(Image.fromarray(ramp).convert("RGB"), "JPEG")
    result = decode(content, "x", (3, 48, 48))
    png = decode(encoded(Image.fromarray(ramp).convert("RGB")), "x", (3, 48, 48))
    assert np.abs(result.astype(int) - png).max() <= 3


def test_refuses_what_it_cannot_read(noise, png):
    with pytest.raises(InputError, match=r"cat\.png is not .*repair or remove it"):
        decode(b"no image", "cat.png", (3, 4, 4))
    half = png(noise(1, 3, 30, 30)[0])[:1000]
    with pytest.raises(InputError, match=r"cat\.png is not"):
        decode(half, "cat.png", (3, 30, 30))
    with pytest.raises(InputError, match="8 bits per channel, but deep has mode I;16"):
        decode(blank(4, 4, "I;16"), "deep", (1, 4, 4))


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_decode_all_keeps_the_order_with_and_without_threads(monkeypatch, seconds):
    monkeypatch.setattr("metaensemble.data.decode.SLOW_SECONDS", seconds)
    images = decode_all(20, (1, 1, 1), lambda row: np.full((1, 1, 1), row, np.uint8))
    assert images.flatten().tolist() == list(range(20))
    assert decode_all(0, (1, 2, 2), lambda row: np.zeros(0)).shape == (0, 1, 2, 2)
