"""What a predictor's conditioning says, in plain lines."""

from collections.abc import Mapping

from metaensemble.report.findings import PLUS_MINUS

SURE = 2.0
"""Standard errors that a difference must exceed to be called shown."""


def listening(conditioning: Mapping[str, float]) -> str:
    """Return whether a predictor's students depend on their teachers, in one line.

    Args:
        conditioning: the keys of `workflows.conditioning`.
    """
    gain, error = conditioning["gain"], conditioning.get("gain_error")
    shown = gain > (SURE * error if error is not None else 0)
    told = (
        "listens to its teachers" if shown else "is not shown to listen to its teachers"
    )
    return (
        f"the predictor {told}: KL to its own ensemble {conditioning['own_kl']:.4f}, "
        f"to others {conditioning['other_kl']:.4f} (difference "
        f"{_with_error(gain, error)}, of references alone "
        f"{conditioning['reference_gain']:.4f}; {conditioning['ensembles']:.0f} "
        "ensembles)"
    )


def listening_lines(conditioning: Mapping[str, float]) -> list[str]:
    """Return `listening`, and what the Transformer's reading adds to the reference."""
    reading = _with_error(
        conditioning["reading_gain"], conditioning.get("reading_error")
    )
    return [
        listening(conditioning),
        "with their own reference, but other teachers before the Transformer, its "
        f"students lose {reading} nats",
        "its students of these ensembles have "
        f"{100 * conditioning['accuracy']:.1f}% on validation images, and "
        f"{100 * conditioning['accuracy_unrelated']:.1f}% with their own reference, "
        "but untrained networks before the Transformer",
    ]


def _with_error(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.4f}, its error unknown"
    return f"{value:.4f} {PLUS_MINUS} {error:.4f}"
