"""Writes the tables of docs/scaling.md: what larger zoos and networks would need.

Command: .venv/bin/python benchmarks/scaling/project.py

Unit costs come from the reports of our studies; what a GPU, a disk and a recipe bring
are the assumptions below. A test checks that docs/scaling.md is what this writes.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies import load

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scaling.md"
FLOATS = 4
"""Bytes of a number in our files."""
SUSTAINED = 3e14
"""FLOP/s of one GPU in dense bfloat16 products; assumed (a third of an H100's peak)."""
DISK = 2e9
"""Bytes/s of reading checkpoints and caches; assumed."""
GPUS = (8, 64)
TEACHER_EPOCHS, KD_EPOCHS, GENERATOR_EPOCHS, VIEWS = 300, 90, 20, 8
"""Passes over the images, and augmented copies that teachers see; assumed."""
BATCH = 256
"""Images per student that the generator writes: the default."""
TEACHERS = 4
EMBEDDED, BLOCKS, EXPANSION = 64, 2, 2.0
"""The generator of the study of prediction."""


@dataclass(frozen=True)
class Data:
    """A data set."""

    name: str
    images: float
    classes: int


@dataclass(frozen=True)
class Network:
    """An architecture: its layers as tokens, its cost, its groups of channels."""

    name: str
    parameters: float
    multiply_adds: float
    """Of one image, forward."""
    layers: tuple[tuple[int, int], ...]
    """Tokens and numbers per token of every layer."""
    groups: tuple[int, ...]
    """Sizes of the assignment problems of one sweep."""


IMAGENET = Data("ImageNet", 1_281_167, 1000)
CIFAR = Data("CIFAR-10", 50_000, 10)


def vit(width: int, depth: int, patch: int, side: int, classes: int) -> Network:
    """Return a plain vision transformer whose feed-forward is four times as wide."""
    tokens = (side // patch) ** 2 + 1
    hidden, pixels = 4 * width, 3 * patch**2
    block = [(width, width + 1)] * 4 + [(hidden, width + 1), (width, hidden + 1)]
    block += [(width, 2)] * 2  # the norms
    layers = [(width, pixels + 1), (1, width), (tokens, width), *block * depth]
    layers += [(width, 2), (classes, width + 1)]
    once = depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    once += tokens * width * pixels + width * classes
    heads = 64
    return Network(
        f"ViT of width {width}, {depth} blocks, {patch}x{patch} patches, {side} pixels",
        sum(rows * wide for rows, wide in layers),
        once,
        tuple(layers),
        (width, *[hidden] * depth, *[heads] * (depth * (width // heads) ** 2)),
    )


VIT_L = vit(1024, 24, 16, 224, IMAGENET.classes)


def rows(study: str) -> list[dict[str, Any]]:
    text = (ROOT / "benchmarks" / study / "report.json").read_text(encoding="utf-8")
    return json.loads(text)["rows"]


@dataclass(frozen=True)
class Units:
    """What our machine measured."""

    forward: float
    """Share of the rate of a large product that evaluation reaches, on the CPU."""
    step: float
    """... a step of KD."""
    generator: float
    """... a pass of the generator."""
    assignment: float
    """Seconds per n^3 of a linear assignment of n, the matchings' sweeps together."""
    matching: float
    """Seconds to match two ResNet-18s."""
    matching_parameters: float
    """Parameters of these (torchvision's, 10 classes)."""
    image: float
    """Bytes of memory per image of CIFAR's size."""
    member: float
    """Seconds to load one more tiny member and compute its outputs."""


def units() -> Units:
    """Return the unit costs of the reports."""
    now = {r["path"]: r for r in rows("profile") if r.get("state") == "now"}

    def reached(path: str) -> float:
        row = now[path]
        return row["floor_seconds"]["multiply-adds"] / row["seconds"]["processor"]

    curves = load("scaling", "run")
    points = rows("scaling")
    widest = [row for row in points if row["curve"] == "match-width"][-1]
    width = widest["x"]
    cubes = sum((factor * width) ** 3 for factor in (1, 2, 2, 4))
    return Units(
        reached("evaluation"),
        reached("kd step"),
        reached("prediction"),
        widest["assignment_seconds"] / cubes,
        now["matching"]["seconds"]["processor"],
        11_173_962,
        curves.line(*curves.of_curve(points, "data-images", "mb"))[0] * 1e6,
        curves.line(*curves.of_curve(points, "zoo-members", "seconds"))[0],
    )


def generator_adds(network: Network, teachers: int) -> float:
    """Return the multiply-adds of a pass, by the formula of the study of prediction."""
    config = SimpleNamespace(
        width=EMBEDDED, depth=BLOCKS, expansion=EXPANSION, attention="axial"
    )
    layers = [SimpleNamespace(rows=r, width=w) for r, w in network.layers]
    shape = SimpleNamespace(config=config, spec=SimpleNamespace(layers=layers))
    return load("prediction", "measure").multiply_adds(shape, teachers)


def unit_table(found: Units) -> str:
    lines = [
        "| unit cost | measured | from |",
        "|---|---|---|",
        f"| evaluation reaches, of a large product's rate "
        f"| {100 * found.forward:.0f} % | profile |",
        f"| a KD step reaches | {100 * found.step:.0f} % | profile |",
        f"| the generator's pass reaches | {100 * found.generator:.0f} % | profile |",
        f"| matching two ResNet-18s | {found.matching:.2f} s of one core | profile |",
        f"| assignments, all sweeps, per n³ | {found.assignment:.1e} s | scaling |",
        f"| memory per image of 32x32x3 | {found.image:,.0f} bytes | scaling |",
        f"| loading a tiny member and its outputs | {1e3 * found.member:.1f} ms "
        "| scaling |",
    ]
    return "\n".join(lines) + "\n"


def hours(flops: float) -> str:
    """Return the hours on each number of GPUs as cells."""
    return " | ".join(_short(flops / SUSTAINED / n / 3600) for n in GPUS)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def large_table(network: Network, data: Data, found: Units) -> str:
    """Return what four teachers of a large network would need."""
    image = 2 * network.multiply_adds
    written = 2 * generator_adds(network, TEACHERS)
    steps = GENERATOR_EPOCHS * data.images / BATCH
    weights = network.parameters * FLOATS
    logits = data.images * data.classes * TEACHERS * FLOATS
    gpus = " | ".join(f"hours on {n} GPUs" for n in GPUS)
    work = {
        f"train {TEACHERS} teachers, {TEACHER_EPOCHS} epochs": (
            3 * image * data.images * TEACHER_EPOCHS * TEACHERS,
            TEACHERS * weights,
        ),
        f"teachers' logits, {VIEWS} views": (
            image * data.images * VIEWS * TEACHERS,
            logits * VIEWS,
        ),
        f"kd with them, {KD_EPOCHS} epochs": (
            3 * image * data.images * KD_EPOCHS,
            4 * weights,
        ),
        f"train the generator, {GENERATOR_EPOCHS} epochs": (
            steps * 3 * (2 * written + image * BATCH),
            (2 * TEACHERS + 3) * weights,
        ),
    }
    lines = [f"| step | FLOPs | bytes | {gpus} |", "|---" * (3 + len(GPUS)) + "|"]
    lines += [
        f"| {name} | {flops:.1e} | {_bytes(size)} | {hours(flops)} |"
        for name, (flops, size) in work.items()
    ]
    cubes = sum(group**3 for group in network.groups)
    lines += [
        "",
        f"{network.name}: {network.parameters / 1e6:,.1f} million parameters, "
        f"{network.multiply_adds / 1e9:.1f} billion multiply-adds an image. The "
        f"generator's pass has {written / 2e9:,.0f} billion, "
        f"{written / image / BATCH:.2f} of the student's on a batch of {BATCH}. On one "
        f"core, where it reaches {100 * found.generator:.0f} %, that pass takes about "
        f"{written / 2 / core_rate() / found.generator:,.0f} s, on one GPU "
        f"{1e3 * written / SUSTAINED:.0f} ms. Matching one pair: "
        f"assignments {found.assignment * cubes / 60:,.0f} minutes of one core. "
        f"Reading the {TEACHERS} checkpoints: "
        f"{TEACHERS * weights / DISK:.1f} s.",
    ]
    return "\n".join(lines) + "\n"


def core_rate() -> float:
    """Return the multiply-adds per second of a large product on our core."""
    return max(r["matrix_rate"] for r in rows("profile") if "matrix_rate" in r)


def zoo_table(found: Units) -> str:
    """Return what a zoo of a thousand members would need."""
    count = 1000
    sizes = {"ResNet-18, CIFAR-10": (11.17e6, 0.56e9, CIFAR)}
    sizes["ResNet-50, ImageNet"] = (25.56e6, 4.09e9, IMAGENET)
    lines = [
        f"| {count:,} members | checkpoints | logits, one view | their FLOPs | hours "
        f"on {GPUS[0]} | on {GPUS[1]} GPUs | matching to one frame, one process |",
        "|---" * 7 + "|",
    ]
    for name, (parameters, adds, data) in sizes.items():
        flops = 2 * adds * data.images * count
        scale = parameters / found.matching_parameters
        hours_matching = found.matching * scale * count / 3600
        logits = data.images * data.classes * FLOATS * count
        lines.append(
            f"| {name} | {_bytes(parameters * FLOATS * count)} "
            f"| {_bytes(logits)} in {count:,} files | {flops:.1e} | {hours(flops)} "
            f"| {hours_matching:.2f} h |"
        )
    lines += [
        "",
        f"Beside the networks' own work a member costs {1e3 * found.member:.1f} ms to "
        f"load and to store and read its outputs: {count * found.member:.0f} s for "
        "them all.",
    ]
    return "\n".join(lines) + "\n"


def tables() -> dict[str, str]:
    """Return the text between each pair of markers."""
    found = units()
    return {
        "units": unit_table(found),
        "vit-l": large_table(VIT_L, IMAGENET, found),
        "zoo": zoo_table(found),
    }


def filled(text: str) -> str:
    """Return `text` with every table between its markers made anew."""
    for name, table in tables().items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
        head, rest = text.split(begin, 1)
        text = head + begin + table + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8")), encoding="utf-8")
