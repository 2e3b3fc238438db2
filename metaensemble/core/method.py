"""What every way of turning N networks into one tells about itself."""

from typing import ClassVar

from metaensemble.core.config import Config


class Method(Config):
    """A frozen value whose fields are the method's hyperparameters.

    A concrete method has a field ``name: Literal["..."]``, by which command lines,
    YAML files and reports call it, and states the class variables below, from which
    ``metaensemble methods`` and the docs are made.
    """

    summary: ClassVar[str]
    """One line: what it does."""
    paper: ClassVar[str]
    """Authors, year, arXiv number or venue."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be there: "one architecture", "labels", "one start", ..."""
    fewest_members: ClassVar[int] = 2
    """How many members there must be."""
    cost: ClassVar[str]
    """What it costs, in words: "no training", "one training", ..."""

    @property
    def name_(self) -> str:
        """Return the method's name, whatever its concrete class."""
        return str(self.__class__.model_fields["name"].default)
