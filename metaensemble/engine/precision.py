"""Networks under training in bfloat16, or compiled, by choice; losses stay as they are.

Only what `Learner.heavy` names is touched: its networks compute in bfloat16 and give
float32, so that no divergence and no gradient of a parameter is taken in eight bits.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaensemble.methods import Learner, TrainedMethod


@contextmanager
def running_as(method: TrainedMethod, learner: Learner) -> Iterator[None]:
    """Run a learner's networks as the method asks, for the length of a block."""
    with ExitStack() as stack:
        for network in learner.heavy():
            if method.compile:
                stack.enter_context(_compiled(network))
            if method.precision == "bfloat16":
                stack.enter_context(_in_bfloat16(network))
        yield


@contextmanager
def _compiled(network: nn.Module) -> Iterator[None]:
    # On the instance, so that names of tensors and the class stay as they are.
    network.forward = torch.compile(network.forward)
    try:
        yield
    finally:
        del network.forward


@contextmanager
def _in_bfloat16(network: nn.Module) -> Iterator[None]:
    open_contexts: list[torch.autocast] = []

    def enter(module: nn.Module, *_: Any) -> None:
        device = next(module.parameters()).device.type
        context = torch.autocast(device, dtype=torch.bfloat16)
        context.__enter__()
        open_contexts.append(context)

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        open_contexts.pop().__exit__(None, None, None)
        return tree_map(_in_full, output)

    handles = [
        network.register_forward_pre_hook(enter),
        network.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_full(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if low else value
