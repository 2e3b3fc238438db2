"""Networks measured on a split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metaensemble.core.seeds import permutation
from metaensemble.data import Normalization, Split
from metaensemble.metrics import Measured, agreement, kl_to, measure
from metaensemble.models import has_batchnorm, reestimate_batchnorm
from metaensemble.teachers.outputs import network_logits

STATISTICS_IMAGES = 1000
"""Unlabelled images from which batch-norm statistics are re-estimated."""
STATISTICS_BATCH = 250
"""Images per batch of that."""


@dataclass(frozen=True)
class Evaluation:
    """A network's predictions on a split and the figures of them."""

    log_probs: Float[Tensor, "images classes"]
    measured: Measured

    def objective(self, ensemble: Float[Tensor, "images classes"] | None) -> float:
        """Return what selection minimises: KL(ensemble || network), else the NLL."""
        if ensemble is None:
            return self.measured.nll
        return kl_to(ensemble, self.log_probs)

    def figures(self, ensemble: Float[Tensor, "images classes"]) -> dict[str, float]:
        """Return accuracy, NLL, fidelity and the objective, for logs."""
        return {
            "accuracy": self.measured.accuracy,
            "nll": self.measured.nll,
            "agreement": agreement(self.log_probs, ensemble),
            "objective": self.objective(ensemble),
        }


def evaluate(
    network: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    split: Split,
    device: str | torch.device = "cpu",
    order: Sequence[int] | None = None,
) -> Evaluation:
    """Return the evaluation of a network, in eval mode, on the plain images.

    Args:
        network: moved to `device`.
        prepare: from bytes to what the network takes, such as its `Normalization`.
        split: whose images.
        device: where the network runs.
        order: which of its logits belongs to each class of the split; None for the
            same order.
    """
    logits = network_logits(network, prepare, split, device=device)
    if order is not None:
        logits = logits[:, list(order)]
    log_probs = logits.log_softmax(-1)
    return Evaluation(log_probs, measure(log_probs, split.labels))


def prepare_statistics(
    network: nn.Module,
    normalization: Normalization,
    split: Split,
    seed: int,
    device: str | torch.device = "cpu",
) -> None:
    """Re-estimate batch-norm statistics in place from images of `split`, unlabelled.

    The same images for the same (split, seed). Does nothing without batch norm.
    """
    if not has_batchnorm(network):
        return
    chosen = permutation(len(split), seed, "statistics")[:STATISTICS_IMAGES]

    def batches() -> Iterator[Tensor]:
        for indices in chosen.split(STATISTICS_BATCH):
            yield normalization(split.batch(indices).to(device))

    reestimate_batchnorm(network.to(device), batches())
