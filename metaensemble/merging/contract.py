"""The contract of merging: state dicts in, state dict out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from metaensemble.core.method import Method
from metaensemble.core.states import State
from metaensemble.metrics import Measured
from metaensemble.teachers import Ensemble, MemberInfo


@dataclass(frozen=True)
class Merged:
    """A merged network: its tensors, and the record of the architecture it has."""

    state: State
    info: MemberInfo


class Merger(Method, ABC):
    """A method that does not train."""

    cost: ClassVar[str] = "no training"
    stale_statistics: ClassVar[bool] = True
    """Whether batch-norm statistics must be re-estimated after `merge`."""

    @abstractmethod
    def merge(self, members: Ensemble, measure: Callable[[Merged], Measured]) -> Merged:
        """Return one network made of the members.

        Args:
            members: what to merge.
            measure: the figures of a candidate on the validation split, with its
                batch-norm statistics re-estimated where they are stale.
        """
