"""ResNet for CIFAR (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.models.resnet import BasicBlock, init_convolutions, projection
from metaensemble.models.shapes import InputShape, require_size


class ZeroPad(nn.Module):
    """The parameter-free shortcut A: every `stride`-th pixel, then zero channels.

    The zeros follow the input's channels, as in the authors' Torch code.
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the strided size for features (batch, fan_in, h, w)."""
        x = x[:, :, :: self.stride, :: self.stride]  # (batch, fan_in, h / s, w / s)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks, global pooling, linear head."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int],
        channels: int,
        classes: int,
        shortcut: Literal["A", "B"],
    ) -> None:
        super().__init__()
        w1, w2, w3 = widths
        self.conv1 = nn.Conv2d(channels, w1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w1)
        self.relu = nn.ReLU()
        self.layer1 = _stage(w1, w1, blocks, 1, shortcut)
        self.layer2 = _stage(w1, w2, blocks, 2, shortcut)
        self.layer3 = _stage(w2, w3, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(w3, classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.relu(self.bn1(self.conv1(images)))  # (batch, w1, h, w)
        x = self.layer1(x)  # (batch, w1, h, w)
        x = self.layer2(x)  # (batch, w2, h / 2, w / 2)
        x = self.layer3(x)  # (batch, w3, h / 4, w / 4)
        x = self.flatten(self.avgpool(x))  # (batch, w3)
        return self.fc(x)  # (batch, classes)


def cifar_resnet(
    depth: int,
    classes: int,
    input_shape: InputShape,
    *,
    width: Annotated[float, Field(gt=0, le=64)] = 1.0,
    shortcut: Literal["A", "B"] = "A",
) -> nn.Module:
    """ResNet for CIFAR (arXiv 1512.03385, section 4.2).

    Args:
        depth: 6n + 2 for n blocks per stage: 20, 32, 56.
        classes: number of logits.
        input_shape: channels, height, width.
        width: factor on the 16, 32 and 64 channels of the stages.
        shortcut: where the shape changes, A pads with zero channels and has no
            parameters, B is a 1x1 convolution with batch norm.

    Raises:
        InputError: the image is smaller than 4 pixels, the network's total stride.
    """
    hint = "choose mlp for smaller images"
    require_size(f"resnet{depth}", input_shape, 4, hint)
    w1, w2, w3 = (max(1, round(width * base)) for base in (16, 32, 64))
    blocks = (depth - 2) // 6
    return CifarResNet(blocks, (w1, w2, w3), input_shape[0], classes, shortcut)


def _stage(
    fan_in: int, fan_out: int, blocks: int, stride: int, shortcut: Literal["A", "B"]
) -> nn.Sequential:
    if stride == 1 and fan_in == fan_out:
        first = nn.Identity()
    elif shortcut == "A":
        first = ZeroPad(fan_out - fan_in, stride)
    else:
        first = projection(fan_in, fan_out, stride)
    stage = [BasicBlock(fan_in, fan_out, stride, first)]
    stage += [BasicBlock(fan_out, fan_out, 1, nn.Identity()) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)
