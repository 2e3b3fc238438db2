"""A small plain convolutional network for demos and small benchmarks."""

from torch import Tensor, nn

from metaensemble.models.shapes import InputShape, Size, require_size


class ConvNet(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, global pooling, linear head."""

    def __init__(
        self,
        channels: int,
        width: int,
        strides: tuple[int, int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        s1, s2, s3, s4 = strides
        self.conv1, self.bn1 = _conv3x3(channels, width, s1)
        self.conv2, self.bn2 = _conv3x3(width, 2 * width, s2)
        self.conv3, self.bn3 = _conv3x3(2 * width, 2 * width, s3)
        self.conv4, self.bn4 = _conv3x3(2 * width, 4 * width, s4)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        # Shapes for the strides 1, 2, 2, 2 and k = width.
        x = self.relu(self.bn1(self.conv1(images)))  # (batch, k, h, w)
        x = self.relu(self.bn2(self.conv2(x)))  # (batch, 2k, h / 2, w / 2)
        x = self.relu(self.bn3(self.conv3(x)))  # (batch, 2k, h / 4, w / 4)
        x = self.relu(self.bn4(self.conv4(x)))  # (batch, 4k, h / 8, w / 8)
        x = self.flatten(self.avgpool(x))  # (batch, 4k)
        return self.fc(x)  # (batch, classes)


def convnet(classes: int, input_shape: InputShape, *, width: Size = 32) -> nn.Module:
    """Plain CNN: four 3x3 convolutions of k, 2k, 2k, 4k channels (k: width).

    Strides are 1, 2, 2, 2, or 1, 2, 1, 2 for images below 16 pixels, which so keep 2x2
    positions to pool over. 131,754 parameters for 32x32x3 and 10 classes. Weights start
    normal with the variance of He et al. 2015 (arXiv 1502.01852, section 2.2), fan out.
    """
    require_size("convnet", input_shape, 4, "choose mlp for smaller images")
    tiny = min(input_shape[1:]) < 16
    strides = (1, 2, 1, 2) if tiny else (1, 2, 2, 2)
    return ConvNet(input_shape[0], width, strides, classes)


def _conv3x3(
    fan_in: int, fan_out: int, stride: int
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(fan_out)
