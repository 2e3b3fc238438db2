"""Several processes of one run, as torchrun starts them: who they are, how they agree.

Sums over processes have a fixed order, so that a resumed run ends in the same bits.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metaensemble.core.errors import InputError

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others; one that is gone is noticed at once."""
CHUNK = 2**24
"""Most numbers that are added up over processes in one message."""


class ToldError(InputError):
    """Bad input that another process of this run has found, and tells of.

    Args:
        message: the sentence.
        kind: class of the error there.
    """

    def __init__(self, message: str, kind: type[InputError] = InputError):
        super().__init__(message)
        self.kind = kind


class LostProcessError(RuntimeError):
    """Another process of this run is gone."""


@dataclass(frozen=True)
class World:
    """This process among those of one run; by default it is alone."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes and speaks for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Return whether there is no other process."""
        return self.size == 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the items that fall to this process: every `size`-th."""
        return list(items[self.rank :: self.size])

    def agreed(self, work: Callable[[], T]) -> T:
        """Let the first process do the work and return its result in all of them.

        All processes must call this at the same place.

        Raises:
            InputError: `work` did, in the first process; in the others `ToldError`.
            LostProcessError: a process is gone.
        """
        if self.alone:
            return work()
        message: list[Any] = [None, None, InputError]
        failure: BaseException | None = None
        if self.first:
            try:
                message[0] = work()
            except InputError as error:
                failure, message[1:] = error, [str(error), type(error)]
            except BaseException as error:
                failure, message[1] = error, f"the first process failed: {error!r}"
        with _noticing_loss():
            dist.broadcast_object_list(message, src=0)
        if failure is not None:
            raise failure
        if message[1] is not None:
            raise ToldError(message[1], message[2])
        return message[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.agreed(lambda: None)
        if not self.alone:
            with _noticing_loss():
                dist.barrier()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their sums over the processes.

        They must have the same shapes in all processes. Added in one order always, in
        messages of at most `CHUNK` numbers of one type.
        """
        if self.alone:
            return
        pending: list[Tensor] = []
        for tensor in tensors:
            full = sum(t.numel() for t in pending) + tensor.numel() > CHUNK
            if pending and (full or tensor.dtype != pending[0].dtype):
                _add_up(pending)
                pending = []
            pending.append(tensor)
        _add_up(pending)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by those of the first process."""
        if self.alone:
            return
        with _noticing_loss(), torch.no_grad():
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                if whole is not tensor:
                    tensor.copy_(whole)


ALONE = World()
"""The world of a run of one process."""


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, if it did, for the length of a block.

    Which ones there are is read from its variables RANK and WORLD_SIZE. Tensors on the
    CPU are sent by gloo, those of CUDA by NCCL; each process uses the GPU of its number
    on its machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield current_world()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_gpu())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def current_world() -> World:
    """Return this process's place among those of the run."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return World(dist.get_rank(), dist.get_world_size())


def local_gpu() -> int:
    """Return the number of the GPU that falls to this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


def _add_up(tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _noticing_loss():
        dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())[:120]
        raise LostProcessError(
            f"another process of this run is gone ({said})"
        ) from error
