"""The six numbers that every report gives for every model: M of report.json."""

from jaxtyping import Float, Int64
from pydantic import ConfigDict, Field
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.metrics.accuracy import accuracy, top_k
from metaensemble.metrics.calibration import expected_calibration_error
from metaensemble.metrics.scores import brier, nll


class Measured(Config):
    """What a model is worth on one set of examples; fractions, never percent."""

    model_config = ConfigDict(allow_inf_nan=False)

    accuracy: float = Field(ge=0, le=1)
    """Fraction of right decisions."""
    top5: float = Field(ge=0, le=1)
    """Fraction of labels among the five most probable classes."""
    nll: float = Field(ge=0)
    """Mean negative log-probability of the label, in nats."""
    brier: float = Field(ge=0, le=2)
    """Mean over examples of the squared error summed over classes."""
    ece: float = Field(ge=0, le=1)
    """Expected calibration error, 15 bins of equal width."""
    count: int = Field(ge=1)
    """Number of examples."""


def measure(
    log_probs: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Measured:
    """Return all six numbers of one model on one set of examples."""
    return Measured(
        accuracy=accuracy(log_probs, labels),
        top5=top_k(log_probs, labels, 5),
        nll=nll(log_probs, labels),
        brier=min(2.0, brier(log_probs, labels)),
        ece=expected_calibration_error(log_probs, labels),
        count=len(labels),
    )
