"""VGG (Simonyan and Zisserman 2015, arXiv 1409.1556), with torchvision's names."""

from typing import Literal

from torch import Tensor, nn

from metaensemble.models.shapes import Dropout, InputShape, is_small, require_size

STAGES = (64, 128, 256, 512, 512)
"""Channels of the five stages; a 2x2 max-pool ends each (table 1)."""

CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth -> 3x3 convolutions per stage: columns A, B, D, E of table 1."""


class VGG(nn.Module):
    """Stages of 3x3 convolutions and max-pools, average pooling, classifier."""

    def __init__(
        self, features: nn.Module, avgpool: nn.Module, classifier: nn.Module
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = avgpool
        self.flatten = nn.Flatten()
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.features(images)  # (batch, 512, height / 32, width / 32)
        x = self.flatten(self.avgpool(x))  # (batch, 512 * 7 * 7) or (batch, 512)
        return self.classifier(x)  # (batch, classes)


def vgg(
    depth: int,
    batchnorm: bool,
    classes: int,
    input_shape: InputShape,
    *,
    head: Literal["auto", "imagenet", "small"] = "auto",
    dropout: Dropout = 0.5,
) -> nn.Module:
    """VGG (arXiv 1409.1556, table 1), torchvision's tensor names.

    Images below 32 pixels lose the last max-pools: one that would leave less than a
    pixel is skipped (an identity keeps its number, so that names do not move).

    Args:
        depth: a key of `CONVOLUTIONS`.
        batchnorm: a batch norm after each convolution.
        classes: number of logits.
        input_shape: channels, height, width.
        head: ``imagenet`` is torchvision's three linear layers on 7x7 positions;
            ``small`` one linear layer, ``classifier.0``, on the globally pooled
            features; ``auto`` takes ``small`` below 64 pixels.
        dropout: probability, in the ``imagenet`` head only.

    Raises:
        InputError: the ``imagenet`` head on images below 32 pixels, the total stride.
    """
    channels, height, width = input_shape
    features = _features(depth, batchnorm, channels, min(height, width))
    if head == "small" or (head == "auto" and is_small(input_shape)):
        classifier = nn.Sequential(nn.Linear(512, classes))
        return VGG(features, nn.AdaptiveAvgPool2d(1), classifier)
    name = f"vgg{depth}{'_bn' if batchnorm else ''} with head=imagenet"
    require_size(name, input_shape, 32, "set head=small for smaller images")
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, classes),
    )
    return VGG(features, nn.AdaptiveAvgPool2d(7), classifier)


def _features(depth: int, batchnorm: bool, channels: int, size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, count in zip(STAGES, CONVOLUTIONS[depth], strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batchnorm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2) if size >= 2 else nn.Identity())
        size //= 2
    return nn.Sequential(*layers)
