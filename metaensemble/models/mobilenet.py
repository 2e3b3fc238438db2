"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), with torchvision's names."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from metaensemble.models.shapes import Dropout, InputShape, is_small, require_size

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first block (table 2)."""


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project back (figure 4d).

    The input is added where the shape stays.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = fan_in * expansion
        expand = [_layer(fan_in, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _layer(hidden, hidden, 3, stride, depthwise=True),
            nn.Conv2d(hidden, fan_out, 1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.residual = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the strided size for features (batch, fan_in, h, w)."""
        out = self.conv(x)  # (batch, fan_out, h / s, w / s)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, 1x1 convolution, pooling, head."""

    def __init__(
        self,
        width: float,
        channels: int,
        classes: int,
        dropout: float,
        *,
        small_stem: bool,
    ) -> None:
        super().__init__()
        fan_in = _divisible(32 * width)
        features: list[nn.Module] = [
            _layer(channels, fan_in, 3, 1 if small_stem else 2)
        ]
        for number, (expansion, base, blocks, stride) in enumerate(STAGES):
            fan_out = _divisible(base * width)
            for block in range(blocks):
                first = stride if block == 0 and not (small_stem and number == 1) else 1
                features.append(InvertedResidual(fan_in, fan_out, first, expansion))
                fan_in = fan_out
        last = _divisible(1280 * max(1.0, width))
        features.append(_layer(fan_in, last, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.features(images)  # (batch, last, h / 32, w / 32); small stem: h / 8
        return self.classifier(self.flatten(self.avgpool(x)))  # (batch, classes)


def mobilenet_v2(
    classes: int,
    input_shape: InputShape,
    *,
    width: Annotated[float, Field(gt=0, le=16)] = 1.0,
    stem: Literal["auto", "imagenet", "small"] = "auto",
    dropout: Dropout = 0.2,
) -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381, table 2), torchvision's tensor names.

    Args:
        classes: number of logits.
        input_shape: channels, height, width.
        width: factor on the channels, which are rounded to multiples of 8; that of the
            last 1x1 convolution is at least 1.
        stem: ``imagenet`` halves the image five times; ``small`` three times, for the
            stem and the second stage keep it; ``auto`` takes ``small`` below 64 pixels.
        dropout: probability, before the head.

    Raises:
        InputError: the image is smaller than the network's total stride.
    """
    small_stem = stem == "small" or (stem == "auto" and is_small(input_shape))
    if small_stem:
        hint = "choose resnet20, convnet or mlp for smaller images"
        require_size("mobilenet_v2", input_shape, 8, hint)
    else:
        hint = "set stem=small for smaller images"
        require_size("mobilenet_v2 with stem=imagenet", input_shape, 32, hint)
    channels = input_shape[0]
    return MobileNetV2(width, channels, classes, dropout, small_stem=small_stem)


def _layer(
    fan_in: int, fan_out: int, kernel: int, stride: int = 1, *, depthwise: bool = False
) -> nn.Sequential:
    groups = fan_in if depthwise else 1
    padding = kernel // 2
    conv = nn.Conv2d(
        fan_in, fan_out, kernel, stride, padding, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out), nn.ReLU6())


def _divisible(channels: float) -> int:
    """Return the nearest multiple of 8 that is at least 8, and no 10 % too small."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
