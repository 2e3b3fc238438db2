"""A multilayer perceptron on flattened images."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from metaensemble.models.shapes import InputShape, Size


class MLP(nn.Module):
    """Hidden layers of linear, batch norm by choice and ReLU, then a linear head."""

    def __init__(
        self, features: int, width: int, depth: int, classes: int, *, batchnorm: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in range(depth):
            fan_in = features if layer == 0 else width
            linear = nn.Linear(fan_in, width, bias=not batchnorm)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            if batchnorm:
                layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
            else:
                nn.init.zeros_(linear.bias)
                layers += [linear, nn.ReLU()]
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(width if depth else features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.flatten(images)  # (batch, channels * height * width)
        x = self.hidden(x)  # (batch, width)
        return self.fc(x)  # (batch, classes)


def mlp(
    classes: int,
    input_shape: InputShape,
    *,
    width: Size = 64,
    depth: Annotated[int, Field(ge=0, le=1_024)] = 2,
    batchnorm: bool = False,
) -> nn.Module:
    """Multilayer perceptron: `depth` hidden layers of `width` units, ReLU.

    Weights start normal with the variance of He et al. 2015 (arXiv 1502.01852,
    section 2.2); with batch norm the hidden layers have no bias. ``depth=0`` is
    multinomial logistic regression.
    """
    channels, height, breadth = input_shape
    features = channels * height * breadth
    return MLP(features, width, depth, classes, batchnorm=batchnorm)
