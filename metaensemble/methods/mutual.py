"""Deep mutual learning: peers that learn from labels and from one another."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, Stage, Task
from metaensemble.methods.distillation import tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.methods.online import (
    Grown,
    OnlineLearner,
    OnlineMethod,
    detached,
    other_networks,
)
from metaensemble.teachers import Ensemble


class Mutual(OnlineMethod):
    """Zhang et al. 2018: networks of one architecture that teach each other.

    loss = sum_i [CE(labels, i) + 1/(M - 1) sum_{j != i} T^2 KL(j at T || i at T)],

    where no gradient flows to the j that teaches (their equation 8, with T = 1). Peers
    differ in their initial weights alone. Difference from the paper, which updates one
    peer after another with predictions made anew: all are updated at once.
    """

    summary: ClassVar[str] = "peers that learn from labels and from one another"
    paper: ClassVar[str] = "Zhang, Xiang, Hospedales, Lu 2018 (arXiv 1706.00384)"
    needs: ClassVar[tuple[str, ...]] = ("labels (training)",)
    cost: ClassVar[str] = "one training of M networks side by side"

    name: Literal["mutual"] = "mutual"
    """The method's name."""
    peers: int = Field(default=2, ge=2)
    """M: how many networks. The first is shipped; none is chosen, for they are alike.
    """
    temperature: float = Field(default=1.0, gt=0)
    """T: both sides of a divergence are softened by it; it is scaled by T^2."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training."""
        del teachers
        others = other_networks(student, task, self.peers - 1)
        learner = MutualLearner(self, [student, *others])
        yield Stage(self.name_, self, learner)


class MutualLearner(OnlineLearner):
    """Trains peers together."""

    def __init__(self, config: Mutual, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.peers = nn.ModuleList(peers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sums over peers of the labels' and of the others' terms."""
        logits = self.predictions(batch.inputs)
        labels = [label_loss(own, batch.labels) for own in logits]
        return {
            "label": torch.stack(labels).sum(),
            "mutual": mutual_loss(logits, self.config.temperature),
        }

    def networks(self) -> list[Grown]:
        """Return the peers."""
        return [
            Grown(f"peer-{number}", detached(peer))
            for number, peer in enumerate(self.peers)
        ]

    def export(self) -> nn.Module:
        """Return the first peer."""
        return detached(self.peers[0])

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the peers' logits."""
        return torch.stack([peer(inputs) for peer in self.peers])


def mutual_loss(
    logits: Float[Tensor, "networks batch classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return the sum over networks of the mean divergence from each other one.

    Args:
        logits: of at least two networks; those of the one that teaches get no gradient.
        temperature: T.
    """
    said = (logits.detach() / temperature).log_softmax(-1)
    terms = [
        tempered_kl(said[j], logits[i], temperature)
        for i in range(len(logits))
        for j in range(len(logits))
        if j != i
    ]
    return torch.stack(terms).sum() / (len(logits) - 1)
