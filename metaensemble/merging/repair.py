"""REPAIR: the aligned mean, its channels' means and deviations restored."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.merging.aligning import AligningMerger
from metaensemble.merging.channels import (
    find_layers,
    mean_statistics,
    measure_channels,
    set_channels,
)
from metaensemble.merging.contract import Bench, Merged
from metaensemble.merging.soup import uniform_soup
from metaensemble.teachers import Ensemble
from metaensemble.teachers.member import build_from
from metaensemble.teachers.tensors import load_strictly

FEW = 100
"""With fewer images than that, the report says how few there were."""


class Repair(AligningMerger):
    """Align, average, and give every hidden layer the members' channel statistics.

    A unit of the mean network is the mean of units that are not perfectly correlated,
    so it varies less than each of them; over layers, signals fade away (variance
    collapse). REPAIR rescales and shifts the channels of each hidden layer to the mean
    of the members' channel means and deviations, and fuses that into the layer's own
    weight and bias. Networks with any norm, or none.
    """

    summary: ClassVar[str] = "aligned mean, channel statistics restored to the members'"
    paper: ClassVar[str] = "Jordan et al. 2022, REPAIR (arXiv 2211.08403)"
    needs: ClassVar[tuple[str, ...]] = (
        "one architecture",
        "torch can trace it",
        "images",
    )
    cost: ClassVar[str] = "no training; one forward pass of every member"
    stale_statistics: ClassVar[bool] = False  # measured in the correcting pass itself

    name: Literal["repair"] = "repair"
    """The method's name."""
    images: int = Field(default=1000, ge=2)
    """Unlabelled training images, augmented, from which statistics are measured."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the repaired mean of the aligned members.

        Raises:
            InputError: the network cannot be traced, its permutations are not sound, or
                there are too few images.
        """
        why = "members to be repaired must share one architecture"
        members.one_architecture(why)
        count = min(self.images, len(bench.data.train))
        if count < 2:
            raise InputError(
                "statistics of channels need at least two training images, but there "
                f"is {count}: too little data for REPAIR; choose aligned_soup"
            )
        info = members.info
        batch = _batch_size(count)

        def batches() -> Iterator[Tensor]:
            return bench.batches(info.normalization, count, augmented=True, batch=batch)

        aligned = self.aligned(members, batches, why)
        network = build_from(info).to(bench.device).eval()
        found = find_layers(network, next(batches())[:2])
        measured = []
        for state in aligned:  # one network at a time
            load_strictly(network, dict(state), "an aligned member", info.architecture)
            measured.append(measure_channels(network, found.layers, batches()))
        soup = uniform_soup(aligned)
        load_strictly(network, soup, "the aligned mean", info.architecture)
        set_channels(network, found.layers, batches(), mean_statistics(measured))
        notes = [f"layers whose channels were repaired: {len(found.layers)}"]
        if count < FEW:
            notes.append(f"channel statistics come from only {count} images")
        repaired = network.state_dict()
        state = {name: repaired[name].cpu().clone() for name in soup}
        return Merged(state, info, (*notes, *found.notes))


def _batch_size(count: int) -> int:
    """Return a size, 250 at most, that makes batches nearly equal, none of one image.

    Batches count the same in batch norm's average, and one image has no deviation.
    """
    equal = math.ceil(count / math.ceil(count / 250))
    return next(size for size in range(equal, 1, -1) if count % size != 1)
