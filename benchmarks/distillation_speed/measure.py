"""One way of distilling, timed in a process of its own; prints a row as JSON.

Called by run.py. Both ways train the same student from the same teachers with the same
loss, batch size, optimizer, crops and flips.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from metaensemble.data import Augmentation, Normalization, TensorSplit
from metaensemble.engine import RunLog, TrainingBatches
from metaensemble.methods import KD
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, MemberInfo, OutputCache, save_member

IMAGES, BATCH, CLASSES, SIZE, PAD = 4096, 128, 10, 32, 4
TEMPERATURE = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=("cached", "plain"))
    parser.add_argument("architecture")
    parser.add_argument("teachers", type=int)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        way = cached if options.way == "cached" else plain
        row = way(noise(IMAGES), options, Path(folder))
    print(json.dumps({**vars(options), **row, "peak_memory_mb": peak()}))


def noise(count: int) -> TensorSplit:
    """Return random images with labels."""
    random = torch.Generator().manual_seed(0)
    size = (count, 3, SIZE, SIZE)
    images = torch.randint(0, 256, size, generator=random).to(torch.uint8)
    return TensorSplit(images, torch.arange(count) % CLASSES)


def cached(split: TensorSplit, options: Any, folder: Path) -> dict[str, Any]:
    """Our way: teachers' outputs from the cache, images in one tensor."""
    step, filling = cached_step(split, options, folder)
    seconds = timed(step, options.steps)
    return {
        "seconds_per_step": seconds,
        "images_per_second": BATCH / seconds,
        "teacher_seconds_per_image": filling / IMAGES / options.teachers,
    }


def cached_step(
    split: TensorSplit, options: Any, folder: Path
) -> tuple[Callable[[int], None], float]:
    """Return a step of training, by its number, and the seconds the cache took."""
    normalization = Normalization.of(split)
    ensemble = members(options, folder, normalization)
    cache = OutputCache(folder / "cache")
    batches = TrainingBatches(
        split,
        Augmentation(pad=PAD, flip=True),
        normalization,
        BATCH,
        0,
        teachers=ensemble,
        cache=cache,
        views=1,
    )
    started = time.perf_counter()
    batches.run_teachers(1, RunLog(quiet=True))
    filling = time.perf_counter() - started
    student = init_model(options.architecture, CLASSES, split.shape, 99).train()
    learner = KD(temperature=TEMPERATURE).learner(student, ensemble)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.01, momentum=0.9, nesterov=True
    )

    def step(number: int) -> None:
        loss = learner(batches(number))["distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, filling


def plain(split: TensorSplit, options: Any, folder: Path) -> dict[str, Any]:
    """The usual way: a DataLoader, and all teachers in every step."""
    normalization = Normalization.of(split)
    ensemble = members(options, folder, normalization)
    teachers = [member.network() for member in ensemble.members]
    student = init_model(options.architecture, CLASSES, split.shape, 99).train()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.01, momentum=0.9, nesterov=True
    )
    loader = DataLoader(
        Pictures(split, normalization),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )

    def forever() -> Any:
        while True:
            yield from loader

    source = forever()

    def step(number: int) -> None:
        inputs, _ = next(source)
        with torch.no_grad():
            probabilities = [
                (teacher(inputs) / TEMPERATURE).softmax(-1) for teacher in teachers
            ]
            target = torch.stack(probabilities).mean(0)
        logits = student(inputs) / TEMPERATURE
        loss = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean")
        loss = TEMPERATURE**2 * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = timed(step, options.steps)
    return {"seconds_per_step": seconds, "images_per_second": BATCH / seconds}


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images one by one: crop, flip, normalise."""

    def __init__(self, split: TensorSplit, normalization: Normalization) -> None:
        self.images, self.labels = split.images, split.labels
        self.mean = torch.tensor(normalization.mean)[:, None, None]
        self.std = torch.tensor(normalization.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = F.pad(self.images[index], (PAD,) * 4)
        top, left = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = image[:, top : top + SIZE, left : left + SIZE]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std, int(self.labels[index])


def members(options: Any, folder: Path, normalization: Normalization) -> Ensemble:
    info = MemberInfo(
        architecture=options.architecture,
        classes=tuple(str(i) for i in range(CLASSES)),
        input_shape=(3, SIZE, SIZE),
        normalization=normalization,
    )
    saved = []
    for seed in range(options.teachers):
        network: nn.Module = init_model(
            options.architecture, CLASSES, info.input_shape, seed
        )
        path = folder / f"{seed}.safetensors"
        saved.append(save_member(path, network.state_dict(), info))
    return Ensemble(tuple(saved))


def timed(step: Any, steps: int) -> float:
    """Return the mean seconds of a step after five that warm up."""
    for number in range(5):
        step(number)
    started = time.perf_counter()
    for number in range(5, 5 + steps):
        step(number)
    return (time.perf_counter() - started) / steps


def peak() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


if __name__ == "__main__":
    main()
