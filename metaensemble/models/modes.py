"""Networks run for a look at them, and left in the modes in which they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Give every module its mode, training or evaluation, back at the end."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def zeros_for(
    network: nn.Module, input_shape: tuple[int, ...], count: int = 1
) -> Tensor:
    """Return images of zeros, of the network's type and on its device.

    Args:
        network: what is to take them.
        input_shape: channels, height, width.
        count: how many images.
    """
    first = next(network.parameters(), torch.empty(0))
    return torch.zeros(count, *input_shape, device=first.device, dtype=first.dtype)


def run_on_zeros(
    network: nn.Module, input_shape: tuple[int, ...], count: int = 1
) -> None:
    """Run a network once in evaluation mode, for its hooks; it stays as it is.

    Arguments are those of `zeros_for`.
    """
    with modes_kept(network), torch.no_grad():
        network.eval()(zeros_for(network, input_shape, count))
