"""One prediction, measured in a process of its own; prints a row as JSON.

Called by run.py.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.states import LazyState
from metaensemble.methods.frame import to_frame
from metaensemble.teachers import load_member
from metaensemble.weightformer import WeightFormer, load_predictor
from metaensemble.weightformer import network as network_module
from metaensemble.weightformer import predictor as predictor_module
from metaensemble.weightformer.attention import Block

MB = 1e6


def resident(field: str) -> float:
    """Return VmRSS or VmHWM of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / MB
    raise KeyError(field)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall's and the processor's seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def multiply_adds(network: WeightFormer, teachers: int) -> int:
    """Return the generator's multiply-adds in one pass."""
    config, total = network.config, 0
    width, hidden = config.width, int(config.width * config.expansion)
    axial = config.attention == "axial"
    for layer in network.spec.layers:
        tokens = teachers * layer.rows + 1
        embed = teachers * layer.rows * layer.width * width
        decode = layer.rows * layer.width * width
        linear = tokens * (4 * width * width * (2 if axial else 1) + 2 * width * hidden)
        if axial:
            pairs = teachers * layer.rows * (layer.rows + 1) + tokens
            pairs += layer.rows * teachers**2
        else:
            pairs = tokens**2
        total += embed + decode + config.depth * (linear + 2 * pairs * width)
    return total


def matrix_rate() -> float:
    """Return multiply-adds per second of a product of matrices of 2048 by 2048."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = min(timed(lambda: a @ b)[0] for _ in range(20))
    return 2048**3 / best


def read_once(paths: list[Path]) -> float:
    """Return the seconds of reading the files' bytes once, from the page cache."""

    def read() -> None:
        buffer = bytearray(2**22)
        for path in paths:
            with path.open("rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass

    return min(timed(read)[0] for _ in range(3))


@contextmanager
def stopwatches(seconds: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of the parts of a prediction."""
    places = [
        ("read the teachers' tokens", network_module, "read_teachers"),
        ("standardise and embed", WeightFormer, "_embedded"),
        ("attention across teachers", Block, "_across_teachers"),
        ("attention within teachers", Block, "_within_teachers"),
        ("full attention", Block, "_attend"),
        ("blocks in all", Block, "forward"),
        ("reference and residual", network_module, "weights_of"),
        ("write the student", predictor_module, "write_layer"),
    ]
    kept = [(owner, name, getattr(owner, name)) for _, owner, name in places]

    def watched(label: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            out = work(*args)
            seconds[label] = seconds.get(label, 0) + time.perf_counter() - began
            return out

        return run

    try:
        for (label, owner, name), (_, _, work) in zip(places, kept, strict=True):
            setattr(owner, name, watched(label, work))
        yield
    finally:
        for owner, name, work in kept:
            setattr(owner, name, work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("members", type=Path, nargs="+")
    parser.add_argument("--predictor", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = arguments.members

    predictor = load_predictor(arguments.predictor)
    network = predictor.network
    forget_peak()
    before = resident("VmRSS")
    row: dict[str, Any] = {"aligned": predictor.frame is not None}
    if predictor.frame is None:
        states = [LazyState(path) for path in paths]
    else:
        info = load_member(paths[0]).info
        lazy = [LazyState(path) for path in paths]
        began = time.perf_counter()
        states = to_frame(info, predictor.frame, lazy)
        row["alignment_seconds"] = time.perf_counter() - began
    first, _ = timed(lambda: predictor.predict(states))
    peak = resident("VmHWM")
    runs = [timed(lambda: predictor.predict(states)) for _ in range(arguments.repeats)]
    # Idle threads of a busy machine spin, so that the processor's seconds of two are
    # not those of the work; one thread's are.
    torch.set_num_threads(1)
    alone = [timed(lambda: predictor.predict(states)) for _ in range(arguments.repeats)]
    torch.set_num_threads(arguments.threads)
    seconds: dict[str, float] = {}
    with stopwatches(seconds):
        whole, _ = timed(lambda: predictor.predict(states))
    attention = sum(v for k, v in seconds.items() if "attention" in k)
    seconds["feed-forward"] = seconds.pop("blocks in all") - attention
    seconds["decode and the rest"] = whole - sum(seconds.values())
    rate = matrix_rate()
    work = multiply_adds(network, len(paths))
    read = read_once(paths)
    row |= {
        "teachers": len(paths),
        "attention": network.config.attention,
        "readout": network.config.readout,
        "checkpoints_mb": sum(path.stat().st_size for path in paths) / MB,
        "generator_mb": sum(t.nbytes for t in network.state_dict().values()) / MB,
        "first_seconds": first,
        "seconds": min(wall for wall, _ in runs),
        "median_seconds": statistics.median(wall for wall, _ in runs),
        "one_thread_seconds": min(wall for wall, _ in alone),
        "one_thread_processor_seconds": min(processor for _, processor in alone),
        "peak_mb": peak,
        "peak_above_start_mb": peak - before,
        "profile_seconds": seconds,
        "multiply_adds": work,
        "matrix_rate": rate,
        "floor_seconds": {"read the files once": read, "multiply-adds": work / rate},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
