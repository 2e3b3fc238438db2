"""Per-channel normalisation from bytes to the numbers a network sees."""

import math

import torch
from jaxtyping import Float32, UInt8
from pydantic import model_validator
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import permutation
from metaensemble.data.split import Split

MAX_IMAGES = 10_000
MAX_PIXELS = 2**28
STD_FLOOR = 1e-3
"""Keeps a constant channel from being divided by zero."""


class Normalization(Config):
    """(x / 255 - mean) / std per channel; mean and std in units of [0, 1] pixels."""

    mean: tuple[float, ...]
    """Mean of each channel, as a fraction of full brightness."""

    std: tuple[float, ...]
    """Standard deviation of each channel, as a fraction of full brightness."""

    @model_validator(mode="after")
    def _check(self) -> "Normalization":
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                "mean and std must have one number per channel, but have "
                f"{len(self.mean)} and {len(self.std)}; give as many of each"
            )
        if not all(map(math.isfinite, self.mean)) or not all(
            math.isfinite(s) and s > 0 for s in self.std
        ):
            raise ValueError(
                "mean must be finite and std positive, but they are "
                f"{self.mean} and {self.std}; compute them with Normalization.of"
            )
        return self

    def __call__(
        self,
        images: UInt8[Tensor, "batch channels height width"]
        | Float32[Tensor, "batch channels height width"],
    ) -> Float32[Tensor, "batch channels height width"]:
        """Return the images as normalised float32, channels last in memory.

        Images are bytes, or floats in [0, 1], through which gradients flow.
        Convolutions run 1.2 to 1.7 times as fast on that layout (benchmarks/LOG.md).
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"images must have {len(self.mean)} channels to be normalised, but "
                f"have {images.shape[1]}; use the data's own normalisation"
            )
        whole = 1 if images.is_floating_point() else 255
        scale = [1 / (whole * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        constants = torch.tensor([scale, shift], device=images.device)
        factor, summand = constants[:, :, None, None]  # each (channels, 1, 1)
        if images.is_floating_point():  # the caller's own tensor
            return (images * factor + summand).to(memory_format=torch.channels_last)
        scaled = images.to(torch.float32, memory_format=torch.channels_last)
        return scaled.mul_(factor).add_(summand)

    @classmethod
    def of(cls, split: Split, *, seed: int = 0) -> "Normalization":
        """Return the statistics of a split, each std at least `STD_FLOOR`.

        At most 10,000 images chosen by `seed` are looked at, fewer if they are large
        (2**28 values, but no less than 1,000 images).
        """
        channels, height, width = split.shape
        affordable = max(1_000, MAX_PIXELS // (channels * height * width))
        count = min(len(split), MAX_IMAGES, affordable)
        if count == 0:
            raise ValueError("a split must hold images to have a mean, but is empty")
        chosen = permutation(len(split), seed, "normalization")[:count]
        total = torch.zeros(channels, dtype=torch.int64)
        square = torch.zeros(channels, dtype=torch.int64)
        for indices in chosen.split(512):
            pixels = split.batch(indices).int()
            total += pixels.sum((0, 2, 3)).cpu()  # exact: integers
            square += pixels.square_().sum((0, 2, 3)).cpu()
        number = count * height * width
        mean = total.double() / number / 255
        variance = square.double() / number / 255**2 - mean**2
        std = variance.clamp(min=STD_FLOOR**2).sqrt()
        return cls(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What torchvision's ImageNet checkpoints were trained with."""


def parse_normalization(text: str, channels: int) -> Normalization | None:
    """Return the normalisation that `text` names; None for ``data``.

    Args:
        text: ``data`` (the statistics of the data at hand), ``imagenet``, ``none``
            (pixels in [0, 1]), or numbers: means, a slash, deviations, such as
            ``0.49,0.48,0.45/0.25,0.24,0.26``.
        channels: of the images.

    Raises:
        InputError: the text is none of these, or not of that many channels.
    """
    if text == "data":
        return None
    found = None
    if text == "imagenet":
        found = IMAGENET
    elif text == "none":
        found = Normalization(mean=(0.0,) * channels, std=(1.0,) * channels)
    else:
        try:
            mean, std = (
                tuple(float(number) for number in part.split(","))
                for part in text.split("/")
            )
            found = Normalization(mean=mean, std=std)
        except ValueError:
            found = None
    if found is None or len(found.mean) != channels:
        raise InputError(
            f"--normalization must be data, imagenet, none, or {channels} means, a "
            f"slash and {channels} positive deviations, but is {text!r}; "
            "write, say, 0.5,0.5,0.5/0.25,0.25,0.25 for three channels"
        )
    return found
