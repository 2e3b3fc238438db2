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
    base: Float[Tensor, "rows width"] | None = None,
    correction: Float[Tensor, "rows width"] | None = None,
) -> Float[Tensor, "rows width"]:
    """Return the tokens of the student's layer.

    Args:
        config: head, reference, gain and centring.
        raw: the teachers' tokens.
        decoded: the decoder's output for the student's slots.
        scores: of the teachers per channel, for the mixture.
        mean: of the layer's tokens over the zoo, by column.
        deviation: of the same.
        base: the reference's tokens, where they are given from outside.
        correction: what is added besides: offset, gradient.
    """
    if config.head == "direct":
        written = mean + deviation * decoded
    else:
        if config.centre:
            decoded = decoded - decoded.mean(0, keepdim=True)
        shares = scores.softmax(0) if config.head == "mixture" else None
        start = reference_of(config, raw, base, shares)
        written = start + config.gain * deviation * decoded
    return written if correction is None else written + correction


def reference_of(
    config: WeightFormerConfig,
    raw: Float[Tensor, "teachers rows width"],
    base: Float[Tensor, "rows width"] | None = None,
    shares: Float[Tensor, "teachers rows 1"] | None = None,
) -> Float[Tensor, "rows width"]:
    """Return the tokens of the reference, to which a head adds.

    Shares that differ from 1/N mix the teachers; a base that is given moves along.
    """
    if shares is not None:
        mixed = (shares * raw).sum(0)
        return mixed if base is None else base + mixed - raw.mean(0)
    if base is not None:
        return base
    first = config.head == "residual" and config.reference in ("auto", "first")
    return raw[0] if first else raw.mean(0)
