"""The mean of N checkpoints: ours, mergekit's, fusion_bench's.

Every process starts cold, reads the checkpoints, averages and writes; a case's folder
holds 0.safetensors, 1.safetensors, ... and case.json. What is written is compared by
`rows`, in exact terms: against the mean in float64.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Row, absent, measured, row
from worker import main

CASES = {
    "resnet50-2": {"count": 2, "dtype": "float32", "mergekit": None},
    "resnet50-4": {"count": 4, "dtype": "float32", "mergekit": None},
    "resnet50-4-float64": {"count": 4, "dtype": "float32", "mergekit": "float64"},
    "resnet50-4-bfloat16": {"count": 4, "dtype": "bfloat16", "mergekit": None},
}
"""Checkpoints, their type, and the one mergekit is told to compute in, its `dtype`."""
FUSION_BENCH = ("resnet50-4",)
"""The cases of fusion_bench, which has no such option."""
REPEATS = {"resnet50-4": 3}
"""Of the case whose time counts; the others, which are about bits, run once."""


def ours(folder: Path) -> dict[str, Any]:
    started = time.process_time()
    from metaensemble.core.states import LazyState, save_state
    from metaensemble.merging.soup import uniform_soup

    imported = time.process_time()
    soup = uniform_soup([LazyState(path) for path in _files(folder)])
    save_state(folder / "metaensemble.safetensors", soup, {})
    return _seconds(started, imported)


def mergekit(folder: Path) -> dict[str, Any]:
    started = time.process_time()
    import yaml
    from mergekit.scripts.merge_raw_pytorch import main as command

    imported = time.process_time()
    config: dict[str, Any] = {
        "merge_method": "linear",
        "models": [
            {"model": str(path), "parameters": {"weight": 1.0}}
            for path in _files(folder)
        ],
        "parameters": {"normalize": True},
    }
    case = json.loads((folder / "case.json").read_text())
    if case["mergekit"]:
        config |= {"dtype": case["mergekit"], "out_dtype": case["dtype"]}
    (folder / "mergekit.yaml").write_text(yaml.safe_dump(config))
    command(
        [str(folder / "mergekit.yaml"), str(folder / "mergekit")], standalone_mode=False
    )
    return _seconds(started, imported)


def fusion_bench(folder: Path) -> dict[str, Any]:
    started = time.process_time()
    from fusion_bench.method.simple_average import simple_average
    from safetensors.torch import load_file, save_file

    imported = time.process_time()
    states = [load_file(path) for path in _files(folder)]
    failed = ""
    try:
        soup = simple_average(states)
    except RuntimeError as error:  # integers: batch norm's counters
        failed = str(error)
        parts = [
            {name: t for name, t in state.items() if t.is_floating_point()}
            for state in states
        ]
        soup = {**states[0], **simple_average(parts)}
    save_file(dict(soup), folder / "fusion-bench.safetensors")
    return {**_seconds(started, imported), "failed": failed}


def _files(folder: Path) -> list[Path]:
    count = json.loads((folder / "case.json").read_text())["count"]
    return [folder / f"{number}.safetensors" for number in range(count)]


def _seconds(started: float, imported: float) -> dict[str, Any]:
    return {
        "import_seconds": imported - started,
        "merge_seconds": time.process_time() - imported,
    }


def prepare(name: str, folder: Path) -> None:
    """Write checkpoints of ResNet-50's tensors, one start's neighbours."""
    import torch

    from metaensemble.core.files import write_json
    from metaensemble.core.seeds import generator
    from metaensemble.core.states import save_state
    from metaensemble.models import init_model

    case = CASES[name]
    network = init_model("resnet50", 1000, (3, 224, 224), 0)
    dtype = getattr(torch, str(case["dtype"]))
    for number in range(int(case["count"] or 0)):
        random = generator(number, "rivals")
        state = {}
        for key, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                state[key] = torch.full_like(tensor, 100)
                continue
            noise = torch.randn(tensor.shape, generator=random)
            state[key] = (tensor + 0.02 * noise).to(dtype)
        save_state(folder / f"{number}.safetensors", state, {})
    write_json(folder / "case.json", case)


def judge(folder: Path, written: Path) -> dict[str, float]:
    """Return how a mean differs from ours, and both from the exact one."""
    import torch

    from metaensemble.core.states import load_state

    members = [load_state(path)[0] for path in _files(folder)]
    mine = load_state(folder / "metaensemble.safetensors")[0]
    theirs = load_state(written)[0]
    found = {"numbers": 0, "equal": 0, "apart": 0.0, "ours_off": 0.0, "theirs_off": 0.0}
    found["integers_differ"] = 0
    for name, like in mine.items():
        other = theirs[name]
        if not like.is_floating_point():
            found["integers_differ"] += int(not torch.equal(like, other.to(like.dtype)))
            continue
        exact = torch.stack([state[name].double() for state in members]).mean(0)
        apart = (like.double() - other.double()).abs().max()
        found["numbers"] += like.numel()
        found["equal"] += int((like == other).sum())
        found["apart"] = max(found["apart"], float(apart))
        for key, tensor in (("ours_off", like), ("theirs_off", other)):
            off = float((tensor.double() - exact).abs().max())
            found[key] = max(found[key], off)
    return found


def rows(rig: Any) -> Iterator[Row]:
    """Yield the rows of both rivals."""
    yield from _beside(rig, rig.rival("mergekit"), tuple(CASES))
    try:
        yield from _beside(rig, rig.rival("fusion-bench"), FUSION_BENCH)
    except RuntimeError as error:
        yield absent("fusion_bench", "", str(error))


def _beside(rig: Any, rival: Any, cases: tuple[str, ...]) -> Iterator[Row]:
    for name in cases:
        folder = rig.folder("soup", name)
        prepare(name, folder)
        ours, theirs = rig.turns("soup", folder, rival, REPEATS.get(name, 1))
        case = CASES[name]
        title = f"{case['count']} x ResNet-50, {case['dtype']}"
        if case["mergekit"]:
            title += f", its dtype: {case['mergekit']}"
        head = ("soup", rival.name, rival.version, title)
        for key, quantity, unit in (
            (
                "process_seconds",
                "processor seconds of the process, cold start to file",
                "s",
            ),
            ("import_seconds", "... of which imports", "s"),
            ("merge_seconds", "... of which reading, averaging, writing", "s"),
            ("peak_mb", "peak resident memory of the process", "MB"),
        ):
            if len(ours) > 1:
                runs = ([run[key] for run in side] for side in (ours, theirs))
                yield measured(*head, quantity, *runs, unit)
        found = judge(folder, _output(folder, rival.name))
        share = found["equal"] / found["numbers"]
        bits = "bit-equal" if share == 1 else f"{share:.2%} of the numbers equal"
        yield row(
            *head,
            f"largest error against the exact mean ({bits}, "
            f"largest difference {found['apart']:.1e}, "
            f"{found['integers_differ']:.0f} integer buffers differ)",
            found["ours_off"],
            found["theirs_off"],
            "weight",
            better="lower",
            note=_note(rival.name, theirs[0].get("failed", "")),
            bit_equal=share == 1,
            **found,
        )
        rig.empty(folder)


def _note(name: str, failed: str) -> str:
    if not failed:
        return ""
    return f"{name} fails on integer buffers ({failed}): it was given the others only."


def _output(folder: Path, name: str) -> Path:
    """Return the file that a rival wrote."""
    if name == "mergekit":
        (file,) = (folder / "mergekit").glob("*.safetensors")
        return file
    return folder / f"{name}.safetensors"


if __name__ == "__main__":
    main({"metaensemble": ours, "mergekit": mergekit, "fusion-bench": fusion_bench})
