"""The base of every configuration: frozen, closed, documented by its attributes."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen value whose unknown keys are errors and whose docstrings are help.

    Attribute docstrings become field descriptions, from which ``--help`` and the docs
    are made. Use `model_copy(update=...)` to derive a changed config.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )
