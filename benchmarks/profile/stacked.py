"""Members in a loop against stacked members (`torch.func`); prints rows as JSON.

Called by run.py. One pass of all members over the same prepared images, in batches as
evaluation takes them, and in batches of 256; the four ways alternate.
"""

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from paths import DISTILLATION, PASS
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from metaensemble.data import Normalization, TensorSplit, in_order
from metaensemble.models import init_model
from metaensemble.teachers.outputs import images_per_pass

MEMBERS, REPEATS, LARGE = 4, 3, 256
CASES = {
    "mlp": 2048,
    "mlp,width=256": 2048,
    "convnet,width=8": 512,
    "convnet,width=16": 512,
    "convnet,width=32": 256,
    "resnet20": 256,
}
"""Architecture: images."""
SHAPE = (3, 32, 32)


@torch.no_grad()
def measured(architecture: str, images: Tensor) -> dict[str, Any]:
    """Return microseconds of the processor per image and member, for each way."""
    networks = [init_model(architecture, 10, SHAPE, i).eval() for i in range(MEMBERS)]
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def one(*state: Any) -> Tensor:
        *tensors, inputs = state
        return functional_call(skeleton, tuple(tensors), (inputs,))

    together = vmap(one, (0, 0, None))

    def loop(size: int) -> Tensor:
        parts = images.split(size)
        return torch.stack([torch.cat([n(part) for part in parts]) for n in networks])

    def stack(size: int) -> Tensor:
        parts = images.split(size)
        return torch.cat([together(parameters, buffers, part) for part in parts], 1)

    usual = images_per_pass(SHAPE, "cpu")
    ways: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: loop(usual),
        "stack": lambda: stack(usual),
        "loop, large": lambda: loop(LARGE),
        "stack, large": lambda: stack(LARGE),
    }
    torch.testing.assert_close(ways["stack"](), ways["loop"](), rtol=1e-3, atol=1e-4)
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            runs[name].append(PASS.timed(way)[1] / len(images) / MEMBERS * 1e6)
    return {name: min(times) for name, times in runs.items()}


def preparing(count: int) -> float:
    """Return microseconds per image before the first layer: gathered, normalised."""
    split: TensorSplit = DISTILLATION.noise(count)
    normalization = Normalization.of(split)

    def prepare() -> None:
        for indices in in_order(split, images_per_pass(SHAPE, "cpu")):
            normalization(split.batch(indices))

    return min(PASS.timed(prepare)[1] for _ in range(REPEATS)) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*batching rule.*")
    rows = []
    for architecture, count in CASES.items():
        images = torch.randn(count, *SHAPE).to(memory_format=torch.channels_last)
        microseconds = measured(architecture, images)
        rows.append(
            {
                "architecture": architecture,
                "members": MEMBERS,
                "threads": options.threads,
                "microseconds": microseconds,
                "preparing": preparing(count),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
