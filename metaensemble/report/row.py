"""The base of everything that report.json holds."""

from pydantic import ConfigDict

from metaensemble.core.config import Config


class Row(Config):
    """A part of a report: frozen, without unknown keys, NaN or infinities."""

    model_config = ConfigDict(allow_inf_nan=False, populate_by_name=True)
