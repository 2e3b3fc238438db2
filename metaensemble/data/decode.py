"""From an image file's bytes to pixels of a fixed shape."""

import io
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line, refuse_irregular
from metaensemble.data.augmentation import FLIP_BELOW, Augmentation

Encoded = Path | bytes
"""An image file, by path or as its content."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""

DEFAULT_SIZE = 224
LARGEST_NATIVE_SIZE = 512
SMALL_SIZE = 64
"""Up to this size an image is not resized to more than it is cropped to."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Whatever a file is called: for some others PIL starts programs (EPS: Ghostscript)."""
MOST_PIXELS = 2**26
"""An image of 8192 x 8192; it takes 200 MB."""

GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")
NUM_THREADS = min(8, os.cpu_count() or 1)
SLOW_SECONDS = 5e-4
"""An image is worth a thread if it takes this long to decode; for smaller ones, the
fight for the interpreter lock costs more than is won (60,000 images of CIFAR: 6.5 s by
one thread, 9.1 s by two)."""


def agreed_shape(
    sample: Iterable[tuple[Encoded, str]], image_size: int | None
) -> tuple[int, int, int]:
    """Return the (channels, height, width) to which all images are brought.

    One channel if all sampled images are grey, else three. The size is `image_size`;
    or that of the images if all have the same, no more than 512; or 224.

    Args:
        sample: images, each with its name for messages; only headers are read.
        image_size: height and width to force.
    """
    grey, sizes = True, set[tuple[int, int]]()
    for encoded, name in sample:
        with _opened(encoded, name) as image:
            grey = grey and image.mode in GREY_MODES
            sizes.add((image.height, image.width))
        if not grey and (image_size is not None or len(sizes) > 1):
            break  # further images cannot change the answer
    if image_size is not None:
        height = width = image_size
    elif len(sizes) == 1 and max(max(size) for size in sizes) <= LARGEST_NATIVE_SIZE:
        height, width = sizes.pop()
    else:
        height = width = DEFAULT_SIZE
    return (1 if grey else 3), height, width


def decode(
    encoded: Encoded,
    name: str,
    shape: tuple[int, int, int],
    augmentation: Augmentation | None = None,
    draws: np.ndarray | None = None,
) -> np.ndarray:
    """Return an image as uint8 (channels, height, width).

    Without `draws`, an image of the wanted size is taken as it is; any other is resized
    until it covers the target (times 256/224 above 64 pixels) and cropped in the
    centre. With `draws`, crops and flips are random: a random resized crop (area 8 % to
    100 %, aspect ratio 3/4 to 4/3) if the augmentation pads, a mirror if it flips.

    Raises:
        InputError: the image cannot be read, or has more than 8 bits per channel.
    """
    channels, height, width = shape
    try:
        with _opened(encoded, name) as image:
            box = _centre(image.size, height, width)
            if augmentation is not None and draws is not None and augmentation.pad:
                box = _random_box(image.size, width / height, draws)
            pixels = _pixels(image, box, shape)
    except InputError:
        raise
    except Exception as error:  # PIL raises a dozen types for broken files
        raise _unreadable(name, error) from error
    array = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    if augmentation is not None and draws is not None and augmentation.flip:
        return array[:, :, ::-1] if draws[2] < FLIP_BELOW else array
    return array


def decode_all(
    count: int, shape: tuple[int, int, int], decode_one: Callable[[int], np.ndarray]
) -> UInt8[Tensor, "images channels height width"]:
    """Return ``decode_one(0), ..., decode_one(count - 1)`` as one uint8 tensor."""
    images = np.empty((count, *shape), dtype=np.uint8)

    def fill(rows: range) -> None:
        for row in rows:
            images[row] = decode_one(row)

    start = time.perf_counter()
    fill(range(min(1, count)))
    if time.perf_counter() - start < SLOW_SECONDS:
        fill(range(1, count))
    else:
        shares = [range(1 + k, count, NUM_THREADS) for k in range(NUM_THREADS)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(fill, shares))  # the list raises what a thread raised
    return torch.from_numpy(images)


def _opened(encoded: Encoded, name: str) -> Image.Image:
    """Return the image with only its header read."""
    if isinstance(encoded, Path) and encoded.exists():
        refuse_irregular(encoded, "an image")
    try:
        source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        image = Image.open(source, formats=FORMATS)
    except Exception as error:
        raise _unreadable(name, error) from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise InputError(
            f"images must have at most {MOST_PIXELS} pixels, but {name} has "
            f"{image.width} x {image.height}; scale it down"
        )
    if image.mode.startswith(DEEP_MODES):
        image.close()
        raise InputError(
            f"images must have 8 bits per channel, but {name} has mode {image.mode}; "
            "convert it to 8 bits, choosing the range to keep"
        )
    return image


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"every image must be readable, but {name} is not ({one_line(error)}); "
        "repair or remove it"
    )


def _centre(size: tuple[int, int], height: int, width: int) -> Box:
    """Return the part of an image of this (width, height) that evaluation sees."""
    if size == (width, height):
        return 0.0, 0.0, float(width), float(height)
    margin = 1 if max(height, width) <= SMALL_SIZE else 256 / 224
    scale = max(margin * width / size[0], margin * height / size[1])
    return _box(size, width / scale, height / scale, 0.5, 0.5)


def _random_box(size: tuple[int, int], aspect: float, draws: np.ndarray) -> Box:
    """Return the part of an image that a random resized crop sees (Inception's)."""
    top, left, _, area, ratio = (float(draw) for draw in draws[:5])
    pixels = size[0] * size[1] * (0.08 + 0.92 * area)
    ratio = aspect * (4 / 3) ** (2 * ratio - 1)
    return _box(size, math.sqrt(pixels * ratio), math.sqrt(pixels / ratio), left, top)


def _box(
    size: tuple[int, int], width: float, height: float, left: float, top: float
) -> Box:
    """Return a box within the image; `left` and `top` are shares of the slack."""
    right, lower = float(size[0]), float(size[1])
    width, height = min(width, right), min(height, lower)
    x, y = left * (right - width), top * (lower - height)
    return x, y, min(x + width, right), min(y + height, lower)


def _pixels(image: Image.Image, box: Box, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the box of an image, resized to the shape."""
    channels, height, width = shape
    full = image.size
    if isinstance(
        image, JpegImageFile
    ):  # decode no finer than needed: up to 4 x faster
        ratio = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
        image.draft(None, (round(full[0] / ratio), round(full[1] / ratio)))
    x, y = image.size[0] / full[0], image.size[1] / full[1]
    box = box[0] * x, box[1] * y, box[2] * x, box[3] * y
    if image.mode == "P":  # may carry transparency, which RGB then drops in silence
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size == (width, height) and box == (0, 0, width, height):
        return np.asarray(image)
    return np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    )
