"""The training loop: one for everything that is trained."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaensemble.core.distributed import ALONE, World
from metaensemble.core.errors import InputError
from metaensemble.engine.checkpoint import Checkpoints, Progress
from metaensemble.engine.division import Division, Step
from metaensemble.engine.interruption import stopping_gently
from metaensemble.engine.log import RunLog
from metaensemble.engine.precision import running_as
from metaensemble.methods import Batch, Learner, TrainedMethod, steps_of

VALIDATIONS = 10
"""How often a training is validated, its end included."""


@dataclass(frozen=True)
class Fitted:
    """How a training went; the learner holds the state that was selected."""

    steps: int
    selected_step: int
    history: list[dict[str, float | int]]
    seconds: float


def fit(
    learner: Learner,
    method: TrainedMethod,
    batch: Callable[..., Batch],
    steps_per_epoch: int,
    *,
    seed: int,
    log: RunLog,
    what: str,
    validate: Callable[[Learner], dict[str, float]] | None,
    checkpoints: Checkpoints | None = None,
    world: World = ALONE,
    stop_after: int | None = None,
) -> Fitted:
    """Train `learner` and leave it in the selected state.

    An interrupted training that finds its checkpoints continues to the same bits: batch
    t and the randomness of step t are functions of (seed, t), and nothing else is
    carried over but what a checkpoint holds. With several processes each takes its
    parts of every batch, gradients and batch-norm statistics are added up, and all hold
    the same weights.

    Args:
        learner: what to train, on its device.
        method: optimizer, rates, epochs, selection.
        batch: step to batch; where batches are divided, (step, part, parts) to a part.
        steps_per_epoch: of `batch`.
        seed: of dropout and whatever else a learner draws.
        log: gets every validation as an event, and progress.
        what: names the training in log and progress.
        validate: returns figures by name, the key ``objective`` (lower is better)
            among them; called before the first step, too. None for a preparation,
            which has no figures: its last state is kept.
        checkpoints: where to write and resume; None for neither.
        world: the processes that share every batch.
        stop_after: leave the loop after so many steps, as an interruption would.

    Raises:
        InputError: the loss is no longer finite; step, batch and parts are named. Or
            the method's batches cannot be divided.
        KeyboardInterrupt: the process was asked to stop, and has saved itself.
    """
    steps = steps_of(method, steps_per_epoch)
    division = Division.of(method, world)
    optimizer = _optimizer(learner, method)
    progress = _begun(learner, optimizer, checkpoints, world, log, what)
    started = time.monotonic()
    spent = progress.seconds
    each = progress.validation_seconds / max(1, len(progress.history))
    log.begin(what, steps, progress.step, images=method.batch_size, validation=each)
    due = _validation_steps(steps)
    if progress.step == 0 and not progress.history:
        _validate(learner, validate, progress, world, log, what)
    leaving = False
    with (
        running_as(method, learner),
        stopping_gently() if checkpoints else nullcontext(lambda: False) as asked,
    ):
        while progress.step < steps and not leaving:
            step = progress.step
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, method.learning_rate, method.warmup)
            learner.train()
            optimizer.zero_grad(set_to_none=True)
            took = division.gradients(learner, batch, step, seed, stop=asked)
            _refuse_not_finite(took, step, seed, what, checkpoints)
            nn.utils.clip_grad_norm_(learner.parameters(), method.clip)
            optimizer.step()
            progress.step = step + 1
            leaving = took.stop or progress.step == stop_after
            if progress.step in due:
                _validate(learner, validate, progress, world, log, what, took.parts)
            if step % 10 == 0 or progress.step == steps:
                log.advance(progress.step, f"loss {took.loss:.4f}")
            progress.seconds = spent + time.monotonic() - started
            if checkpoints and world.first:
                ended = leaving or progress.step == steps
                if ended or checkpoints.due(progress.step):
                    progress.learner = learner.state_dict()
                    progress.optimizer = optimizer.state_dict()
                    checkpoints.save(progress)
    if leaving and progress.step != stop_after:
        log.event("interrupted", what=what, step=progress.step)
        raise KeyboardInterrupt(f"{what} was saved after step {progress.step}")
    progress.seconds = spent + time.monotonic() - started
    selected = progress.step
    if method.selection == "best" and progress.best:
        learner.load_state_dict(progress.best)
        selected = progress.best_step
    log.event(
        "fitted",
        what=what,
        steps=progress.step,
        selected_step=selected,
        train_seconds=round(progress.seconds, 3),
    )
    return Fitted(progress.step, selected, progress.history, progress.seconds)


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of a step: linear rise to `peak`, then cosine to 0.

    The first step has a positive rate, and so has the last.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    phase = (step - rising + 0.5) / max(1, steps - rising)
    return peak * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0)))


def _optimizer(learner: Learner, method: TrainedMethod) -> torch.optim.Optimizer:
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if p.ndim >= 2],
            "weight_decay": method.weight_decay,
        },
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = method.learning_rate
    if method.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _begun(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints | None,
    world: World,
    log: RunLog,
    what: str,
) -> Progress:
    """Return where the training stands; the learner is as it was there."""
    progress = None
    if checkpoints:
        checkpoints.expect(learner)
        progress, wrong = world.agreed(checkpoints.load)
        for complaint in wrong:
            log.say(f"{complaint} (an older one is whole, and is used)")
    if progress is None:
        world.copy_first([*learner.parameters(), *learner.buffers()])
        return Progress()
    learner.load_state_dict(progress.learner)
    optimizer.load_state_dict(progress.optimizer)
    log.event("resume", what=what, step=progress.step)
    threads = torch.get_num_threads()
    if progress.threads not in (0, threads):
        log.say(
            f"{what} was begun with {progress.threads} threads and goes on with "
            f"{threads}: its last bits may be others than in one go"
        )
    return progress


def _validation_steps(steps: int) -> set[int]:
    return {math.ceil(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}


def _validate(
    learner: Learner,
    validate: Callable[[Learner], dict[str, float]] | None,
    progress: Progress,
    world: World,
    log: RunLog,
    what: str,
    losses: dict[str, Tensor] | None = None,
) -> None:
    if validate is None:
        return
    began = time.monotonic()
    learner.eval()
    figures = world.agreed(lambda: validate(learner))
    parts = {f"loss_{name}": value.item() for name, value in (losses or {}).items()}
    row = {"step": progress.step, **figures, **parts}
    progress.history.append(row)
    progress.validation_seconds += time.monotonic() - began
    log.event("validation", what=what, **row)
    value = float(figures["objective"])
    if value < progress.best_value:
        progress.best_value, progress.best_step = value, progress.step
        progress.best = copy.deepcopy(learner.state_dict())


def _refuse_not_finite(
    took: Step, step: int, seed: int, what: str, checkpoints: Checkpoints | None
) -> None:
    if math.isfinite(took.loss):
        return
    listing = ", ".join(f"{n} {value.item():.3g}" for n, value in took.parts.items())
    files = checkpoints.files if checkpoints else []
    kept = f"; the last good state is {files[0]}" if files else ""
    raise InputError(
        f"the loss must stay finite, but in step {step} of {what}, whose batch has the "
        f"seed {seed}, it is not ({listing}){kept}; lower --learning-rate or --clip"
    )
