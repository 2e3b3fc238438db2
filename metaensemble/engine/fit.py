"""The training loop: one for everything that is trained."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import derive_seed
from metaensemble.engine.checkpoint import Progress, load_progress, save_progress
from metaensemble.engine.log import RunLog
from metaensemble.methods import Batch, Learner, TrainedMethod, steps_of

CHECKPOINT_SECONDS = 30.0
"""Time between checkpoints."""
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
    batch: Callable[[int], Batch],
    steps_per_epoch: int,
    *,
    seed: int,
    log: RunLog,
    what: str,
    validate: Callable[[Learner], dict[str, float]] | None,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
) -> Fitted:
    """Train `learner` and leave it in the selected state.

    An interrupted training that finds its `checkpoint` continues to the same bits:
    batch t and the randomness of step t are functions of (seed, t), and nothing else is
    carried over but what the checkpoint holds.

    Args:
        learner: what to train, on its device.
        method: optimizer, rates, epochs, selection.
        batch: step to batch.
        steps_per_epoch: of `batch`.
        seed: of dropout and whatever else a learner draws.
        log: gets every validation as an event, and progress.
        what: names the training in log and progress.
        validate: returns figures by name, the key ``objective`` (lower is better)
            among them; called before the first step, too. None for a preparation,
            which has no figures: its last state is kept.
        checkpoint: where to write and resume; None for neither.
        stop_after: leave the loop after so many steps, as an interruption would.

    Raises:
        InputError: the loss is no longer finite; step and parts are named.
    """
    steps = steps_of(method, steps_per_epoch)
    optimizer = _optimizer(learner, method)
    progress = (load_progress(checkpoint) if checkpoint else None) or Progress()
    if progress.learner:
        learner.load_state_dict(progress.learner)
        optimizer.load_state_dict(progress.optimizer)
        log.event("resume", what=what, step=progress.step)
    started = saved = time.monotonic()
    spent = progress.seconds
    log.begin(what, steps, progress.step)
    due = _validation_steps(steps)
    if progress.step == 0 and not progress.history:
        _validate(learner, validate, progress, log, what)
    last: dict[str, Tensor] = {}
    while progress.step < steps:
        step = progress.step
        images = batch(step)  # may build teachers, which draws random numbers
        torch.manual_seed(derive_seed(seed, "step", step))
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, method.learning_rate, method.warmup)
        learner.train()
        last = learner(images)
        loss = torch.stack(list(last.values())).sum()
        _refuse_not_finite(loss, last, step, what)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), method.clip)
        optimizer.step()
        progress.step = step + 1
        if progress.step in due:
            _validate(learner, validate, progress, log, what, last)
        if step % 10 == 0 or progress.step == steps:
            log.advance(progress.step, f"loss {loss.item():.4f}")
        now = time.monotonic()
        progress.seconds = spent + now - started
        leaving = progress.step == stop_after
        if checkpoint and (leaving or now - saved > CHECKPOINT_SECONDS):
            progress.learner = learner.state_dict()
            progress.optimizer = optimizer.state_dict()
            save_progress(checkpoint, progress)
            saved = now
        if leaving:
            break
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


def _validation_steps(steps: int) -> set[int]:
    return {math.ceil(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}


def _validate(
    learner: Learner,
    validate: Callable[[Learner], dict[str, float]] | None,
    progress: Progress,
    log: RunLog,
    what: str,
    losses: dict[str, Tensor] | None = None,
) -> None:
    if validate is None:
        return
    learner.eval()
    figures = validate(learner)
    parts = {f"loss_{name}": value.item() for name, value in (losses or {}).items()}
    row = {"step": progress.step, **figures, **parts}
    progress.history.append(row)
    log.event("validation", what=what, **row)
    value = float(figures["objective"])
    if value < progress.best_value:
        progress.best_value, progress.best_step = value, progress.step
        progress.best = copy.deepcopy(learner.state_dict())


def _refuse_not_finite(
    loss: Tensor, parts: dict[str, Tensor], step: int, what: str
) -> None:
    if bool(torch.isfinite(loss)):
        return
    listing = ", ".join(f"{name} {value.item():.3g}" for name, value in parts.items())
    raise InputError(
        f"the loss must stay finite, but in step {step} of {what} it is not "
        f"({listing}); lower --learning-rate or --clip"
    )
