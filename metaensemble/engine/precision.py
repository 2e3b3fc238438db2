"""Networks under training in bfloat16, or compiled, by choice; losses stay as they are.

Only what `Learner.heavy` names is touched, and only in steps of training: its networks
compute in bfloat16 and give float32, so that no divergence and no gradient of a
parameter is taken in eight bits. What is measured is measured in float32, uncompiled.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaensemble.methods import Learner, TrainedMethod


@contextmanager
def running_as(method: TrainedMethod, learner: Learner) -> Iterator[None]:
    """Run a learner's networks as the method asks, for the length of a block."""
    with ExitStack() as stack:
        if method.compile or method.precision != "float32":
            for network in learner.heavy():
                stack.enter_context(_trained_as(method, network))
        yield


@contextmanager
def _trained_as(method: TrainedMethod, network: nn.Module) -> Iterator[None]:
    plain = network._call_impl
    chosen = torch.compile(plain) if method.compile else plain
    low = method.precision == "bfloat16"

    def call(*args: Any, **kwargs: Any) -> Any:
        if not (network.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        device = next(network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16) if low else nullcontext():
            output = chosen(*args, **kwargs)
        return tree_map(_in_full, output) if low else output

    # Where `nn.Module.compile` puts its own: a copy of the network does not inherit it,
    # or an exported copy would compute with this network's weights.
    network._compiled_call_impl = call
    try:
        yield
    finally:
        network._compiled_call_impl = None


def _in_full(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if low else value
