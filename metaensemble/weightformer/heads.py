"""Where the student is read off the Transformer, and how that becomes weights."""

from jaxtyping import Float
from torch import Tensor

from metaensemble.weightformer.config import WeightFormerConfig


def pool(
    slots: Float[Tensor, "teachers rows width"],
    scores: Float[Tensor, "teachers rows 1"],
) -> Float[Tensor, "rows width"]:
    """Return each channel's mean over the teachers, weighted by softmax of scores.

    The order of the teachers changes nothing but the rounding.
    """
    return (scores.softmax(0) * slots).sum(0)


def weights_of(
    config: WeightFormerConfig,
    raw: Float[Tensor, "teachers rows width"],
    decoded: Float[Tensor, "rows width"],
    scores: Float[Tensor, "teachers rows 1"],
    mean: Float[Tensor, " width"],
    deviation: Float[Tensor, " width"],
) -> Float[Tensor, "rows width"]:
    """Return the tokens of the student's layer.

    Args:
        config: head, reference, gain and centring.
        raw: the teachers' tokens.
        decoded: the decoder's output for the student's slots.
        scores: of the teachers per channel, for the mixture.
        mean: of the layer's tokens over the zoo, by column.
        deviation: of the same.
    """
    if config.head == "direct":
        return mean + deviation * decoded
    if config.centre:
        decoded = decoded - decoded.mean(0, keepdim=True)
    if config.head == "mixture":
        base = (scores.softmax(0) * raw).sum(0)
    else:
        base = raw[0] if config.reference in ("auto", "first") else raw.mean(0)
    return base + config.gain * deviation * decoded
