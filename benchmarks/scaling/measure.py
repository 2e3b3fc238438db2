"""One point of a curve, measured in a process of its own; prints a row as JSON.

Called by run.py. Seconds are the processor's, of one thread, the least of the repeats:
neighbours on the machine stretch the wall's seconds, hardly these.
"""

import argparse
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaensemble.alignment import assignment, derive_permutations, match_weights
from metaensemble.core.states import LazyState
from metaensemble.data import Normalization, load_data
from metaensemble.models import init_model
from metaensemble.teachers import OutputCache, load_ensemble
from metaensemble.weightformer import load_predictor

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies import load
from synthetic import write_cifar

PREDICTION = load("prediction", "run")
PASS = load("prediction", "measure")
DISTILLATION = load("distillation_speed", "measure")
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=POINTS)
    parser.add_argument("architecture")
    parser.add_argument("size", type=int)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    print(json.dumps(POINTS[options.what](options)))


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """One pass over `size` teachers in files."""
    folder = options.work
    members = PREDICTION.make_members(folder, options.architecture, options.size)
    file = folder / f"{options.architecture}-{options.size}-predictor.safetensors"
    fields = {"max_teachers": max(8, options.size)}
    PREDICTION.make_predictor(file, options.architecture, fields)
    predictor = load_predictor(file)
    file.unlink()
    states = [LazyState(path) for path in members]
    PASS.forget_peak()
    before = PASS.resident("VmRSS")
    predictor.predict(states)
    peak = PASS.resident("VmHWM") - before
    return {
        "seconds": fastest(lambda: predictor.predict(states), 3),
        "mb": peak,
        "checkpoints_mb": sum(path.stat().st_size for path in members) / MB,
        "parameters": sum(t.numel() for t in states[0].values()),
        "multiply_adds": PASS.multiply_adds(predictor.network, options.size),
        "matrix_rate": matrix_rate(),
    }


def kd(options: argparse.Namespace) -> dict[str, Any]:
    """One step of KD from `size` teachers with cached logits."""
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        named = Namespace(architecture=options.architecture, teachers=options.size)
        split = DISTILLATION.noise(1024)
        PASS.forget_peak()
        before = PASS.resident("VmRSS")
        step, filling = DISTILLATION.cached_step(split, named, Path(scratch))
        numbers = iter(range(10**6))
        for _ in range(3):
            step(next(numbers))
        return {
            "seconds": fastest(lambda: step(next(numbers)), 20),
            "mb": PASS.resident("VmHWM") - before,
            "filling_seconds": filling,
        }


def match(options: argparse.Namespace) -> dict[str, Any]:
    """Match the weights of two networks of width `size`."""
    name, shape = f"{options.architecture},width={options.size}", (3, 32, 32)
    networks = [init_model(name, 10, shape, seed).eval() for seed in range(2)]
    spec = derive_permutations(networks[0], shape)
    a, b = (dict(network.state_dict()) for network in networks)
    solve, assigned = assignment.linear_sum_assignment, [0.0]

    def watched(*args: Any, **named: Any) -> Any:
        found: list[Any] = []
        assigned[0] += PASS.timed(lambda: found.append(solve(*args, **named)))[1]
        return found[0]

    assignment.linear_sum_assignment = watched
    seconds = fastest(lambda: match_weights(spec, a, b), 2)
    return {
        "seconds": seconds,
        "assignment_seconds": assigned[0] / 2,
        "parameters": sum(t.numel() for t in a.values()),
        "largest_group": max(group.size for group in spec.groups),
    }


def data(options: argparse.Namespace) -> dict[str, Any]:
    """Read `size` training images, and 1,000 test images, in CIFAR's format."""
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        folder = write_cifar(Path(scratch), options.size, 1000)
        PASS.forget_peak()
        before = PASS.resident("VmRSS")
        found: list[Any] = []
        seconds = PASS.timed(lambda: found.append(load_data(str(folder))))[1]
        return {
            "seconds": seconds,
            "mb": PASS.resident("VmHWM") - before,
            "kept_mb": PASS.resident("VmRSS") - before,
            "images": sum(len(split) for split in (found[0].train, found[0].test)),
        }


def zoo(options: argparse.Namespace) -> dict[str, Any]:
    """Load `size` tiny members, and compute and read their outputs for 64 images."""
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        folder, split = Path(scratch) / "zoo", DISTILLATION.noise(64)
        folder.mkdir()
        named = Namespace(architecture=options.architecture, teachers=options.size)
        PASS.forget_peak()
        before = PASS.resident("VmRSS")
        DISTILLATION.members(named, folder, Normalization.of(split))
        found: list[Any] = []
        loading = PASS.timed(lambda: found.append(load_ensemble([folder])))[1]
        cache = OutputCache(Path(scratch) / "cache")
        outputs = PASS.timed(lambda: cache.ensemble_logits(found[0], split))[1]
        return {
            "seconds": loading + outputs,
            "loading_seconds": loading,
            "mb": PASS.resident("VmHWM") - before,
        }


POINTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "predict": predict,
    "kd": kd,
    "match": match,
    "data": data,
    "zoo": zoo,
}


def fastest(work: Callable[[], Any], repeats: int) -> float:
    return min(PASS.timed(work)[1] for _ in range(repeats))


def matrix_rate() -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2048**3 / fastest(lambda: a @ b, 10)


if __name__ == "__main__":
    main()
