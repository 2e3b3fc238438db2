"""The small convolution network of the multi-view theory (arXiv 2012.09816)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from metaensemble.models.shapes import InputShape, Size


class SmoothedReLU(nn.Module):
    """Zero below 0, a power up to `rho`, then linear with slope 1 (section 2.2).

    z^q / (q rho^(q - 1)) for 0 <= z <= rho, and z - (1 - 1/q) rho above. Near zero its
    slope grows with z, so that the neuron that starts ahead runs away: a seed decides
    which of two features a class learns.
    """

    def __init__(self, power: int, rho: float) -> None:
        super().__init__()
        self.power, self.rho = power, rho

    def forward(self, z: Tensor) -> Tensor:
        """Return the activations of `z`, of its shape."""
        # Clamped, the branch not taken has a gradient of zero, never infinity.
        curved = z.clamp(0, self.rho) ** self.power
        curved = curved / (self.power * self.rho ** (self.power - 1))
        return curved + (z - self.rho).relu()

    def extra_repr(self) -> str:
        """Return the shape's two numbers."""
        return f"power={self.power}, rho={self.rho}"


class PatchNet(nn.Module):
    """F_i(x) = sum over a class's m neurons r and patches p of ReLU~(<w_ir, x_p>)."""

    def __init__(
        self,
        classes: int,
        input_shape: InputShape,
        width: int,
        activation: SmoothedReLU,
        scale: float,
    ) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.classes = classes
        self.conv = nn.Conv2d(channels, classes * width, (height, 1), bias=False)
        nn.init.normal_(self.conv.weight, std=scale)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, h, w)."""
        x = self.activation(self.conv(images))  # (batch, classes * width, 1, w)
        x = x.flatten(2).sum(2)  # (batch, classes * width)
        return x.unflatten(1, (self.classes, -1)).sum(2)  # (batch, classes)


def patchnet(
    classes: int,
    input_shape: InputShape,
    *,
    width: Size = 4,
    power: Annotated[int, Field(ge=2, le=16)] = 3,
    rho: Annotated[float, Field(gt=0)] = 1.0,
    scale: Annotated[float, Field(gt=0)] = 0.0003,
) -> nn.Module:
    """One layer of filters over patches, smoothed ReLU, summed per class.

    A patch is a column of the image; `width` neurons belong to each class and nothing
    follows them, as in Allen-Zhu and Li (arXiv 2012.09816, section 2.2). Weights start
    normal with the deviation `scale`: small, so that neurons compete. For
    ``--data multiview``.
    """
    activation = SmoothedReLU(power, rho)
    return PatchNet(classes, input_shape, width, activation, scale)
