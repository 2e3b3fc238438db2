"""Batch norm statistics: running averages belong to weights, and must follow them.

After weights were averaged, permuted or generated, the running means and variances of
their sources no longer describe what flows through (SWA, arXiv 1803.05407, section 3.2;
REPAIR, arXiv 2211.08403).
"""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

# The only common base of BatchNorm1d, 2d, 3d and SyncBatchNorm.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from metaensemble.core.errors import InputError
from metaensemble.models.modes import modes_kept


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether some layer of the model keeps running statistics of batches."""
    return bool(_norms(model))


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace all running statistics by their plain average over the batches.

    Every batch counts the same, so let them be of one size. Means and (unbiased)
    variances are those PyTorch computes in training mode. Only the norms are in
    training mode meanwhile, so dropout is off. Weights are untouched, modes and momenta
    are restored.
    A model without such norms is left alone, and its batches are not read.

    Args:
        model: changed in place.
        batches: images (batch, channels, height, width); moved to the model's device.
            No labels; a few hundred images do.

    Raises:
        InputError: there are no batches.
    """
    norms = _norms(model)
    if not norms:
        return
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise InputError(
            "batch norm statistics must be re-estimated from at least one batch of "
            "images, but there are none; give some images of the training data"
        )
    momenta = {norm: norm.momentum for norm in norms}
    mean = norms[0].running_mean
    assert mean is not None
    try:
        with modes_kept(model):
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # PyTorch's cumulative average
                norm.train()
            for images in chain([first], iterator):
                model(images.to(mean.device))
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _norms(model: nn.Module) -> list[BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    ]
