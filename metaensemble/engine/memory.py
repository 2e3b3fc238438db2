"""How much memory the process took at its peak."""

import sys

import torch

MEBIBYTE = 2**20


def peak_memory() -> dict[str, int]:
    """Return the peaks so far in MiB, as the fields of a log event.

    ``memory_mb`` is the largest resident set of this process; it is left out where the
    system does not tell. ``cuda_memory_mb``, the most that tensors took on the present
    CUDA device, is there only where CUDA is used.
    """
    peaks = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
        peaks["memory_mb"] = peak * unit // MEBIBYTE
    if torch.cuda.is_initialized():
        peaks["cuda_memory_mb"] = torch.cuda.max_memory_allocated() // MEBIBYTE
    return peaks
