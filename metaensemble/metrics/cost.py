"""What a model costs to keep and to run."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from metaensemble.core.errors import InputError


def parameters(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once; buffers do not count."""
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass of one example.

    Convolutions, matrix products and attention count; biases, norms and activations,
    which are a few percent, do not (the custom of the field). The module runs once, in
    evaluation mode, on zeros of ``(1, *input_shape)``, and keeps its own mode.

    Args:
        module: takes one tensor (batch, *input_shape).
        input_shape: shape of one example, such as (3, 32, 32).
    """
    like = next(module.parameters(), torch.empty(0))
    example = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    # no_grad, not inference_mode: there, composite operations escape the counter
    with _evaluating(module), _countable_attention(), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            module(example)
    return counter.get_total_flops() // 2


def latency_ms(call: Callable[[], object], repeats: int = 15, warmup: int = 3) -> float:
    """Return the median wall time of `call` in milliseconds.

    Args:
        call: the work, such as ``lambda: model(example)``.
        repeats: how often it is timed, at least 1.
        warmup: how often it runs untimed before.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, but is {repeats}")
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        _wait_for_device()
        start = time.perf_counter()
        call()
        _wait_for_device()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def peak_memory_mb() -> float | None:
    """Return the most memory this process has held so far, in 10^6 bytes.

    The GPU's where this process uses one, else resident memory; None where the system
    does not tell (Windows). On Linux from ``VmHWM``, because a child's ``ru_maxrss``
    starts at the size of the parent that launched it.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6  # the kernel says kB for KiB
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used * 1024 / 1e6


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Send attention through plain matrix products, which the counter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
