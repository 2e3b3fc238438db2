"""ResNet for ImageNet, with torchvision's tensor names (arXiv 1512.03385, table 1)."""

from typing import Literal

from torch import Tensor, nn

from metaensemble.models.shapes import InputShape, is_small, require_size


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 5, left).

    Args:
        fan_in: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution.
        shortcut: what brings the input to the output's shape.
    """

    expansion = 1

    def __init__(
        self, fan_in: int, width: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the strided size for features (batch, fan_in, h, w)."""
        out = self.relu(self.bn1(self.conv1(x)))  # (batch, width, h / s, w / s)
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (figure 5, right).

    The stride sits on the 3x3 convolution, as in torchvision ("v1.5"), not on the first
    1x1 as in the paper.
    """

    expansion = 4

    def __init__(
        self, fan_in: int, width: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the strided size for features (batch, fan_in, h, w)."""
        out = self.relu(self.bn1(self.conv1(x)))  # (batch, width, h, w)
        out = self.relu(self.bn2(self.conv2(out)))  # (batch, width, h / s, w / s)
        out = self.bn3(self.conv3(out))  # (batch, 4 * width, h / s, w / s)
        return self.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global pooling, linear head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        channels: int,
        classes: int,
        *,
        small_stem: bool,
    ) -> None:
        super().__init__()
        if small_stem:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512 * block.expansion, classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.maxpool(x)  # (batch, 64, h, w), of the image all or a quarter per side
        x = self.layer1(x)  # (batch, 64e, h, w), e the block's expansion
        x = self.layer2(x)  # (batch, 128e, h / 2, w / 2)
        x = self.layer3(x)  # (batch, 256e, h / 4, w / 4)
        x = self.layer4(x)  # (batch, 512e, h / 8, w / 8)
        x = self.flatten(self.avgpool(x))  # (batch, 512e)
        return self.fc(x)  # (batch, classes)


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def resnet(
    depth: int,
    classes: int,
    input_shape: InputShape,
    *,
    stem: Literal["auto", "imagenet", "small"] = "auto",
) -> nn.Module:
    """ResNet for ImageNet (arXiv 1512.03385, table 1), torchvision's tensor names.

    The ``imagenet`` stem is a 7x7 convolution of stride 2 and a max-pool; ``small`` is
    a 3x3 convolution of stride 1 without pool; ``auto`` takes ``small`` below 64
    pixels.

    Args:
        depth: a key of `DEPTHS`.
        classes: number of logits.
        input_shape: channels, height, width.
        stem: how the image enters.

    Raises:
        InputError: the image is smaller than the network's total stride.
    """
    small_stem = stem == "small" or (stem == "auto" and is_small(input_shape))
    if small_stem:
        hint = "choose resnet20, convnet or mlp for smaller images"
        require_size(f"resnet{depth}", input_shape, 8, hint)
    else:
        hint = "set stem=small for smaller images"
        require_size(f"resnet{depth} with stem=imagenet", input_shape, 32, hint)
    block, depths = DEPTHS[depth]
    return ResNet(block, depths, input_shape[0], classes, small_stem=small_stem)


def projection(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    """Return the 1x1 convolution with batch norm that is the paper's shortcut B."""
    conv = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


def init_convolutions(model: nn.Module) -> None:
    """Draw all convolution weights as He et al. 2015 (arXiv 1502.01852), fan out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    fan_in: int,
    width: int,
    depth: int,
    stride: int,
) -> nn.Sequential:
    fan_out = width * block.expansion
    same = stride == 1 and fan_in == fan_out
    shortcut = nn.Identity() if same else projection(fan_in, fan_out, stride)
    blocks: list[nn.Module] = [block(fan_in, width, stride, shortcut)]
    blocks += [block(fan_out, width, 1, nn.Identity()) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
