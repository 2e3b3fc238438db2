"""The hot paths: what is done once, what is measured, and what it needs at least.

Called by run.py; each path runs in a process of its own.
"""

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from metaensemble.alignment import assignment, match_weights, spec_for
from metaensemble.alignment.terms import Terms
from metaensemble.core.states import LazyState, State
from metaensemble.data import Augmentation, Normalization, TensorSplit
from metaensemble.engine import TrainingBatches
from metaensemble.methods import GeneratorTraining, WeightFormerLearner
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, OutputCache
from metaensemble.weightformer import load_predictor

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies import load

PREDICTION = load("prediction", "run")
PASS = load("prediction", "measure")
DISTILLATION = load("distillation_speed", "measure")
READ = 4
"""Teachers that a generator reads."""


@dataclass(frozen=True)
class Hot:
    """One hot path, ready to run."""

    what: str
    """What one run of `work` does."""
    work: Callable[[], Any]
    multiply_adds: float
    """Of one run, at least."""
    read: tuple[Path, ...] = ()
    """Files that one run must read."""


def generator(folder: Path) -> Hot:
    """ResNet-50 from four teachers in files, as in the study of prediction."""
    members = PREDICTION.make_members(folder, "resnet50", READ)
    file = folder / "predictor.safetensors"
    PREDICTION.make_predictor(file, "resnet50", {})
    predictor = load_predictor(file)
    states = [LazyState(path) for path in members]
    return Hot(
        f"predict ResNet-50 from {READ} teachers",
        lambda: predictor.predict(states),
        PASS.multiply_adds(predictor.network, READ),
        tuple(members),
    )


def weightformer_step(folder: Path) -> Hot:
    """One step of `learn-weightformer` with its defaults on a zoo of convnets."""
    architecture, size, images = "convnet,width=16", 8, 512
    split: TensorSplit = DISTILLATION.noise(images)
    normalization = Normalization.of(split)
    zoo = members(architecture, size, folder, normalization)
    config = GeneratorTraining()
    student = init_model(architecture, DISTILLATION.CLASSES, split.shape, 99)
    learner = WeightFormerLearner(
        config, student, zoo, zoo.subset(range(READ)), draw=(READ, READ)
    ).train()
    batches = TrainingBatches(
        split,
        Augmentation(pad=4, flip=True),
        normalization,
        config.batch_size,
        0,
        teachers=zoo,
        cache=OutputCache(folder / "cache"),
        views=1,
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-4)
    number = iter(range(10**6))

    def step() -> None:
        losses = learner(batches(next(number)))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
        optimizer.step()

    looks = 2 if config.shift_weight else 1
    passes = looks * PASS.multiply_adds(learner.generator, READ)
    one = torch.zeros(1, *split.shape)
    passes += config.batch_size * counted(lambda: student.eval()(one))
    return Hot(
        f"one step of learn-weightformer, {READ} of {size} {architecture}, "
        f"batch {config.batch_size}",
        step,
        3 * passes,  # backward is two more
    )


def kd_step(folder: Path) -> Hot:
    """One step of KD from four teachers with cached logits."""
    options = Namespace(architecture="convnet,width=32", teachers=READ)
    split = DISTILLATION.noise(1024)
    step, _ = DISTILLATION.cached_step(split, options, folder)
    number = iter(range(10**6))
    return Hot(
        f"one step of kd, {READ} cached teachers, {options.architecture}, "
        f"batch {DISTILLATION.BATCH}",
        lambda: step(next(number)),
        counted(lambda: step(0)),
    )


def matching(folder: Path) -> Hot:
    """Match the weights of two ResNet-18s."""
    shape = (3, 32, 32)
    networks = [init_model("resnet18", 10, shape, seed) for seed in range(2)]
    spec = spec_for(networks[0], shape)
    a, b = (state_of(network) for network in networks)
    terms = Terms(spec, a, b)._terms
    once = sum(
        term.mine.numel() * term.axis.count for each in terms.values() for term in each
    )
    solve = assignment.linear_sum_assignment

    def named(*args: Any, **options: Any) -> Any:
        with torch.profiler.record_function("assignment (scipy)"):
            return solve(*args, **options)

    assignment.linear_sum_assignment = named
    return Hot("match two ResNet-18s", lambda: match_weights(spec, a, b), 2 * once)


def evaluation(folder: Path, architecture: str = "convnet,width=32") -> Hot:
    """The logits of an ensemble over images, as every command measures them."""
    count, images = 4, 1000
    split: TensorSplit = DISTILLATION.noise(images)
    ensemble = members(architecture, count, folder / "zoo", Normalization.of(split))
    place = folder / "outputs"

    def run() -> None:
        shutil.rmtree(place, ignore_errors=True)
        OutputCache(place).ensemble_logits(ensemble, split)

    network, one = ensemble.members[0].network(), torch.zeros(1, *split.shape)
    needed = counted(lambda: network(one)) * count * images
    return Hot(f"logits of {count} {architecture} for {images:,} images", run, needed)


PATHS: dict[str, Callable[[Path], Hot]] = {
    "prediction": generator,
    "weightformer step": weightformer_step,
    "kd step": kd_step,
    "matching": matching,
    "evaluation": evaluation,
    "evaluation, deep": lambda folder: evaluation(folder, "resnet20"),
}


def members(
    architecture: str, count: int, folder: Path, normalization: Normalization
) -> Ensemble:
    """Write networks of random weights and return them as an ensemble."""
    folder.mkdir(parents=True, exist_ok=True)
    options = Namespace(architecture=architecture, teachers=count)
    return DISTILLATION.members(options, folder, normalization)


def state_of(network: torch.nn.Module) -> State:
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


def counted(work: Callable[[], Any]) -> float:
    """Return the multiply-adds of the convolutions and products of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2
