"""Seeded augmentation: random crops and flips whose randomness is data, not state."""

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from pydantic import Field
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator

NUM_DRAWS = 8
"""Uniform numbers per image and view. Columns: 0 top, 1 left, 2 flip, 3 area and
4 aspect ratio of a random resized crop (streamed images only); 5 to 7 are free."""

CHOICES = ("none", "flip", "crop", "crop_flip", "auto")
"""What `parse_augmentation` understands."""

FLIP_BELOW = 0.5
"""An image is mirrored if its flip draw is below: half of them are."""


class Augmentation(Config):
    """Random crop after zero padding, and horizontal flip with probability one half.

    Given as values, the randomness of a view can be repeated: the teachers' outputs for
    view v can be cached and met again by the student.
    """

    pad: int = Field(default=0, ge=0)
    """Zero pixels added on each side before a random crop to the old size; 0: none."""

    flip: bool = False
    """Whether half of the images are mirrored left to right."""

    @property
    def is_identity(self) -> bool:
        """Whether images come out as they went in."""
        return self.pad == 0 and not self.flip

    def draws(self, count: int, seed: int, view: int) -> Float32[Tensor, "count 8"]:
        """Return uniform [0, 1) numbers: row i is the randomness of image i in a view.

        Args:
            count: how many images there are (of the whole split, not of a batch).
            seed: the run's seed.
            view: the number of the view, normally the epoch.
        """
        return torch.rand(
            count, NUM_DRAWS, generator=generator(seed, "augmentation", view)
        )

    def __call__(
        self,
        images: UInt8[Tensor, "batch channels height width"],
        draws: Float32[Tensor, "rows 8"],
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Return the images cropped and flipped as their rows of `draws` say."""
        if self.is_identity:
            return images
        if len(draws) != len(images):
            raise ValueError(
                f"draws must have one row per image, but there are {len(draws)} rows "
                f"for {len(images)} images; index them alike"
            )
        batch, channels, height, width = images.shape
        draws = draws.to(images.device)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            mirrored = width - 1 - columns
            flipped = draws[:, 2:3] < FLIP_BELOW
            columns = torch.where(flipped, mirrored, columns)
        if self.pad == 0:
            index = columns[:, None, None].expand(images.shape)
            return images.gather(3, index)
        top, left = offset(draws[:, 0], self.pad), offset(draws[:, 1], self.pad)
        rows = top[:, None] + torch.arange(height, device=images.device)  # (b, h)
        columns = left[:, None] + columns  # (b, w)
        padded = F.pad(images, (self.pad,) * 4)
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (b, h, w)
        index = pixels.view(batch, 1, -1).expand(batch, channels, -1)
        return padded.flatten(2).gather(2, index).view(images.shape)


def offset(draw: Tensor, pad: int) -> Tensor:
    """Return the crop offset in 0..2*pad that each uniform number stands for."""
    return (draw * (2 * pad + 1)).long().clamp_(max=2 * pad)


def standard(channels: int, height: int) -> Augmentation:
    """Return the default for image files: crop by an eighth; flip if in colour."""
    return Augmentation(pad=max(1, height // 8), flip=channels == 3)


def parse_augmentation(text: str, *, default: Augmentation) -> Augmentation:
    """Return the augmentation that a word of the command line names.

    Args:
        text: one of `CHOICES`; "auto" is the data's default.
        default: the data's default; its `pad` is also that of "crop" and "crop_flip".

    Raises:
        InputError: `text` is another word.
    """
    named = {
        "none": Augmentation(),
        "flip": Augmentation(flip=True),
        "crop": Augmentation(pad=default.pad),
        "crop_flip": Augmentation(pad=default.pad, flip=True),
        "auto": default,
    }
    if text not in named:
        raise InputError(
            f"the augmentation must be one of {', '.join(CHOICES)}, but is {text!r}; "
            "choose one of these"
        )
    return named[text]
