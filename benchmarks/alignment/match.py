"""Matches one pair of networks with one tool, in a process of its own.

Called by run.py, which says with what. Reads PAIR/pair.json, PAIR/a.safetensors,
PAIR/b.safetensors and, where a tool cannot derive it, PAIR/spec.json; writes
permuted.safetensors and figures.json beside the tool's name.
"""

import argparse
import contextlib
import cProfile
import importlib.util
import io
import json
import pstats
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from metaensemble.alignment import (
    apply_permutations,
    derive_permutations,
    load_spec,
    match_weights,
    prove,
)
from metaensemble.core.states import load_state, save_state
from metaensemble.models import build

State = dict[str, Tensor]


@dataclass
class Watch:
    """Seconds of the parts of a matching, on the wall and of the processor."""

    wall: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = time.perf_counter() - wall
        self.processor[name] = time.process_time() - processor


@dataclass(frozen=True)
class Pair:
    """Two states of one architecture."""

    folder: Path
    architecture: str
    classes: int
    shape: tuple[int, int, int]

    def network(self, name: str) -> nn.Module:
        """Return one of the two, a or b."""
        network = build(self.architecture, self.classes, self.shape)
        network.load_state_dict(self.state(name))
        return network.eval()

    def state(self, name: str) -> State:
        """Return the tensors of one of the two."""
        return load_state(self.folder / f"{name}.safetensors")[0]


def ours(pair: Pair, watch: Watch, options: argparse.Namespace) -> State:
    network, a, b = pair.network("a"), pair.state("a"), pair.state("b")
    with watch.part("spec"):
        spec = derive_permutations(network, pair.shape)
        prove(network, spec, pair.shape)
    with watch.part("matching"):
        matching = match_weights(spec, a, b)
    return apply_permutations(spec, matching.permutations, b)


def rebasin(pair: Pair, watch: Watch, options: argparse.Namespace) -> State:
    from rebasin import PermutationCoordinateDescent

    a, b = pair.network("a"), pair.network("b")
    with watch.part("spec"):
        descent = PermutationCoordinateDescent(a, b, torch.randn(1, *pair.shape))
    with watch.part("matching"):
        descent.calculate_permutations()
    descent.apply_permutations()
    return b.state_dict()


def git_re_basin_pytorch(
    pair: Pair, watch: Watch, options: argparse.Namespace
) -> State:
    """Its matching, on our spec: its own specs are of its own networks only."""
    file = options.git_re_basin / "utils" / "weight_matching.py"
    module = importlib.util.module_from_spec(
        found := importlib.util.spec_from_file_location("weight_matching", file)
    )
    found.loader.exec_module(module)
    spec, a, b = load_spec(pair.folder / "spec.json"), pair.state("a"), pair.state("b")
    axes: dict[str, list[str | None]] = {}
    for group in spec.groups:
        for axis in group.axes:
            if axis.span > 1 or axis.count < a[axis.tensor].shape[axis.dim]:
                raise NotImplementedError(
                    f"only whole dimensions of span 1, but {axis.tensor}"
                )
            if not axis.statistic:
                own = axes.setdefault(axis.tensor, [None] * a[axis.tensor].ndim)
                own[axis.dim] = group.name
    theirs = module.permutation_spec_from_axes_to_perm(axes)
    with watch.part("matching"), contextlib.redirect_stdout(io.StringIO()):
        found = module.weight_matching(theirs, a, b)
    return apply_permutations(spec, {name: p.long() for name, p in found.items()}, b)


TOOLS: dict[str, Callable[[Pair, Watch, argparse.Namespace], State]] = {
    "metaensemble": ours,
    "rebasin": rebasin,
    "git-re-basin-pytorch": git_re_basin_pytorch,
}


def profiled(pair: Pair, options: argparse.Namespace) -> dict[str, float]:
    """Return the shares of the processor time of our matching alone."""
    spec = derive_permutations(pair.network("a"), pair.shape)
    a, b = pair.state("a"), pair.state("b")
    profile = cProfile.Profile(time.process_time)
    profile.runcall(match_weights, spec, a, b)
    parts = {
        "assignment": "linear_sum_assignment",
        "products": "addmm_",
        "reordering": "index_select",
        "copying": "contiguous",
    }
    stats = pstats.Stats(profile)
    total = stats.total_tt
    shares = {
        part: sum(s[2] for key, s in stats.stats.items() if name in key[2]) / total
        for part, name in parts.items()
    }
    return shares | {"rest": 1 - sum(shares.values())}


def memory_mb() -> float:
    """Return the peak resident memory of this process since it began (Linux)."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--git-re-basin", type=Path)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    about = json.loads((options.pair / "pair.json").read_text())
    pair = Pair(
        options.pair, about["architecture"], about["classes"], tuple(about["shape"])
    )
    if options.profile:
        print(json.dumps(profiled(pair, options)))
        return
    torch.manual_seed(0)
    watch, before = Watch(), memory_mb()
    permuted = TOOLS[options.tool](pair, watch, options)
    known = options.tool == "rebasin"
    figures = {
        "seconds": watch.wall,
        "processor_seconds": watch.processor,
        "peak_memory_mb": memory_mb(),
        "memory_at_start_mb": before,
        "version": version("rebasin") if known else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    save_state(options.pair / f"{options.tool}.safetensors", permuted, {})
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
