"""The mean of members after their hidden units have been brought to one order."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaensemble.merging.aligning import AligningMerger
from metaensemble.merging.contract import Bench, Merged
from metaensemble.merging.soup import uniform_soup
from metaensemble.teachers import Ensemble


class AlignedSoup(AligningMerger):
    """Permute every member to the first one's frame, then average.

    For independently trained members of one architecture: a network computes the same
    when its hidden units change places, so that the units of two networks must be
    matched before their weights are averaged. Batch-norm statistics are re-estimated
    afterwards, without which the mean is at chance (arXiv 2211.08403).
    """

    summary: ClassVar[str] = "match the members' hidden units, then average the weights"
    paper: ClassVar[str] = "Ainsworth et al. 2022, Git Re-Basin (arXiv 2209.04836)"
    needs: ClassVar[tuple[str, ...]] = ("one architecture", "torch can trace it")

    name: Literal["aligned_soup"] = "aligned_soup"
    """The method's name."""
    images: int = Field(default=1000, ge=2)
    """Unlabelled images that a matching by activations looks at."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the soup of the aligned members.

        Raises:
            InputError: the network cannot be traced, or its permutations are not sound.
        """

        def batches() -> Iterator[Tensor]:
            return bench.batches(members.info.normalization, self.images)

        return Merged(uniform_soup(self.aligned(members, batches)), members.info)
