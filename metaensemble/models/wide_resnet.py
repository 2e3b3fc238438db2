"""Wide ResNet (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from torch import Tensor, nn

from metaensemble.models.resnet import init_convolutions
from metaensemble.models.shapes import Dropout, InputShape, require_size


class WideBlock(nn.Module):
    """Pre-activation block: batch norm, ReLU, 3x3 convolution, twice (figure 1, d).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input,
    otherwise the input itself.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.projects = stride != 1 or fan_in != fan_out
        if self.projects:
            self.shortcut = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the strided size for features (batch, fan_in, h, w)."""
        active = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(active)))  # (batch, fan_out, h / s, w / s)
        out = self.conv2(self.dropout(out))
        return out + self.shortcut(active if self.projects else x)


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of wide blocks, a last norm, pooling, linear head."""

    def __init__(
        self, blocks: int, factor: int, channels: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        w1, w2, w3 = 16 * factor, 32 * factor, 64 * factor
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, w1, blocks, 1, dropout)
        self.layer2 = _stage(w1, w2, blocks, 2, dropout)
        self.layer3 = _stage(w2, w3, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(w3)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(w3, classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.layer1(self.conv1(images))  # (batch, 16k, h, w)
        x = self.layer2(x)  # (batch, 32k, h / 2, w / 2)
        x = self.layer3(x)  # (batch, 64k, h / 4, w / 4)
        x = self.relu(self.bn1(x))
        x = self.flatten(self.avgpool(x))  # (batch, 64k)
        return self.fc(x)  # (batch, classes)


def wide_resnet(
    depth: int,
    factor: int,
    classes: int,
    input_shape: InputShape,
    *,
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Wide ResNet for CIFAR (arXiv 1605.07146, table 1), pre-activation.

    Args:
        depth: 6n + 4 for n blocks per stage: 16, 28, 40.
        factor: k, by which the 16, 32 and 64 channels of the stages are widened.
        classes: number of logits.
        input_shape: channels, height, width.
        dropout: probability, between the convolutions of a block (section 2.4).

    Raises:
        InputError: the image is smaller than 4 pixels, the network's total stride.
    """
    hint = "choose mlp for smaller images"
    require_size(f"wrn{depth}_{factor}", input_shape, 4, hint)
    blocks = (depth - 4) // 6
    return WideResNet(blocks, factor, input_shape[0], classes, dropout)


def _stage(
    fan_in: int, fan_out: int, blocks: int, stride: int, dropout: float
) -> nn.Sequential:
    stage = [WideBlock(fan_in, fan_out, stride, dropout)]
    stage += [WideBlock(fan_out, fan_out, 1, dropout) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)
