"""Gradients of a batch that is divided: among processes, and into parts one by one.

With P processes and `accumulate` = A, a batch has P * A parts; process r takes those
from r * A on. So two processes, and one that accumulates two parts, compute the same
sums. No DistributedDataParallel: it orders its messages anew after the first step, so
that a resumed run would end in other bits; and it needs every parameter in every step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from metaensemble.core.distributed import World
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import derive_seed
from metaensemble.methods import Batch, Learner, TrainedMethod


@dataclass(frozen=True)
class Step:
    """What a step's gradients were computed from."""

    loss: float
    """Mean over the whole batch."""
    parts: dict[str, Tensor]
    """The loss's parts by name, on the last part of the batch that was seen here."""
    stop: bool
    """Whether a process was asked to stop."""


@dataclass(frozen=True)
class Division:
    """How batches are divided."""

    world: World
    accumulate: int

    @classmethod
    def of(cls, method: TrainedMethod, world: World) -> "Division":
        """Return a method's division.

        Raises:
            InputError: the method's batches cannot be divided, or are too small.
        """
        division = cls(world, method.accumulate)
        if division.parts > 1 and not method.divisible:
            raise InputError(
                f"the batches of {method.name_} must stay whole, since it keeps a "
                f"memory of what it saw, but are to be divided into {division.parts}; "
                "run one process, without --accumulate"
            )
        if method.batch_size < division.parts:
            raise InputError(
                f"a batch must have an image for each of its {division.parts} parts, "
                f"but --batch-size is {method.batch_size}; raise it"
            )
        return division

    @property
    def parts(self) -> int:
        """Return the number of parts of a batch."""
        return self.world.size * self.accumulate

    def gradients(
        self,
        learner: Learner,
        batch: Callable[..., Batch],
        step: int,
        seed: int,
        *,
        stop: Callable[[], bool],
    ) -> Step:
        """Add up the gradients of the mean loss over batch `step`, in all processes.

        Args:
            learner: gets the gradients; in train mode, without any.
            batch: see `fit`.
            step: number of the batch.
            seed: of the learner's randomness.
            stop: tells whether this process was asked to stop.
        """
        if self.parts == 1:
            losses = _losses(learner, batch(step), seed, step)
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
            return Step(loss.item(), losses, stop())
        total = torch.zeros((), dtype=torch.float64)
        losses: dict[str, Tensor] = {}
        first = self.world.rank * self.accumulate
        pieces = [
            batch(step, part, self.parts)
            for part in range(first, first + self.accumulate)
        ]
        count = torch.tensor(float(sum(len(piece.labels) for piece in pieces)))
        self.world.add_up([count])
        for part, piece in enumerate(pieces, first):
            losses = _losses(learner, piece, seed, step, part)
            weight = len(piece.labels) / count.item()
            loss = weight * torch.stack(list(losses.values())).sum()
            loss.backward()
            total += loss.item()
        stopping = torch.tensor(float(stop()))
        self._add_up(learner, [total, stopping])
        return Step(total.item(), losses, bool(stopping.item()))

    def _add_up(self, learner: Learner, numbers: list[Tensor]) -> None:
        """Add up gradients and numbers over processes; average norm statistics."""
        if self.world.alone:
            return
        trained = [p for p in learner.parameters() if p.requires_grad]
        # A parameter that no process used keeps no gradient, as in one process.
        used = torch.tensor([float(p.grad is not None) for p in trained])
        self.world.add_up([used])
        kept = [p for p, n in zip(trained, used.tolist(), strict=True) if n]
        for parameter in kept:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        statistics = _running_statistics(learner)
        for tensor in statistics:
            tensor.div_(self.world.size)
        grads = [p.grad for p in kept if p.grad is not None]
        self.world.add_up([*grads, *statistics])
        self.world.add_up(numbers)


def _losses(
    learner: Learner, piece: Batch, seed: int, step: int, part: int | None = None
) -> dict[str, Tensor]:
    # After the batch was made, which may build teachers and so draw random numbers.
    of_part = [] if part is None else [part]
    torch.manual_seed(derive_seed(seed, "step", step, *of_part))
    return learner(piece)


def _running_statistics(learner: Learner) -> list[Tensor]:
    """Return the running means and variances of the norm layers under training."""
    return [
        tensor
        for module in learner.modules()
        if isinstance(module, _NormBase)
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]
