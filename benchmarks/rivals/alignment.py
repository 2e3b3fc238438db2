"""Bringing one network's hidden units to another's order: ours, rebasin's.

A case's folder holds, per pair, 0-a.safetensors and 0-b.safetensors, trained on
scikit-learn's digits from two random starts, and images.safetensors. Every tool
permutes b of every pair; what it wrote is judged by one piece of code, `judge`.
"""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from rows import CHANGED, ROUNDING, Row, measured, paired, row
from worker import main

CASES = ("mlp", "cnn", "cnn with batch norm")
PAIRS = 5
SHAPE = (1, 8, 8)
EPOCHS = 15
REPEATS = 3


def network(case: str) -> Any:
    """Return a network of a case, of random weights."""
    from torch import nn

    if case == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )
    layers: list[nn.Module] = []
    widths = (1, 32, 64, 64)
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if "norm" in case:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU())
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*layers)


def ours(folder: Path) -> dict[str, Any]:
    from metaensemble.alignment import apply_permutations, match_weights, spec_for

    def align(first: Any, second: Any) -> tuple[Any, float, float]:
        a, b = first.state_dict(), second.state_dict()
        started = time.process_time()
        spec = spec_for(first, SHAPE)
        known = time.process_time()
        found = match_weights(spec, a, b).permutations
        ended = time.process_time()
        return apply_permutations(spec, found, b), known - started, ended - known

    return _aligned(folder, "metaensemble", align)


def rebasin(folder: Path) -> dict[str, Any]:
    import torch
    from rebasin import PermutationCoordinateDescent

    def align(first: Any, second: Any) -> tuple[Any, float, float]:
        images = torch.randn(1, *SHAPE)
        started = time.process_time()
        descent = PermutationCoordinateDescent(first, second, images)
        known = time.process_time()
        descent.calculate_permutations()
        ended = time.process_time()
        descent.apply_permutations()
        return second.state_dict(), known - started, ended - known

    return _aligned(folder, "rebasin", align)


def _aligned(folder: Path, tool: str, align: Any) -> dict[str, Any]:
    """Write every pair's permuted b; return mean seconds per pair, one to warm up."""
    import torch
    from safetensors.torch import save_file

    case = (folder / "case").read_text()
    torch.manual_seed(0)
    align(*(_loaded(case, folder / f"0-{which}.safetensors") for which in "ab"))
    spec, matching = [], []
    for pair in range(PAIRS):
        both = (_loaded(case, folder / f"{pair}-{which}.safetensors") for which in "ab")
        state, first, second = align(*both)
        spec.append(first)
        matching.append(second)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(state, folder / f"{pair}-{tool}.safetensors")
    return {
        "matching_seconds": sum(matching) / PAIRS,
        "with_spec_seconds": (sum(spec) + sum(matching)) / PAIRS,
    }


def _loaded(case: str, path: Path) -> Any:
    from safetensors.torch import load_file

    made = network(case)
    made.load_state_dict(load_file(path))
    return made.eval()


def prepare(case: str, folder: Path) -> None:
    """Train the pairs."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

    from metaensemble.core.seeds import permutation, seeded
    from metaensemble.data import load_data

    data = load_data("digits")
    images, labels = {}, {}
    for name, split in (("train", data.train), ("test", data.test)):
        everything = torch.arange(len(split))
        images[name] = data.normalization(split.batch(everything))
        labels[name] = split.labels[everything]
    for pair in range(PAIRS):
        for which in "ab":
            with seeded(case, pair, which):
                made = network(case)
            optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
            for epoch in range(EPOCHS):
                order = permutation(len(labels["train"]), case, pair, which, epoch)
                for indices in order.split(64):
                    optimizer.zero_grad()
                    logits = made(images["train"][indices])
                    F.cross_entropy(logits, labels["train"][indices]).backward()
                    optimizer.step()
            save_file(made.state_dict(), folder / f"{pair}-{which}.safetensors")
    known = {"train": images["train"], "test": images["test"], "labels": labels["test"]}
    save_file(known, folder / "images.safetensors")
    (folder / "case").write_text(case)


def judge(case: str, folder: Path, tool: str) -> dict[str, list[float]]:
    """Return figures of a tool's alignment, one per pair.

    objective: sum over all parameters of <A, P(B)>, in float64; `tool` may be b, for no
    alignment. accuracy: of the mean of A and P(B) on the test digits, its batch-norm
    statistics re-estimated on the training digits. changed: the largest change of B's
    logits, against the largest; rounding if P is a symmetry. renewed: the same, once
    the statistics of both are re-estimated. members: mean accuracy of A and B.
    """
    import torch
    from safetensors.torch import load_file

    from metaensemble.models import reestimate_batchnorm

    known = load_file(folder / "images.safetensors")

    @torch.no_grad()
    def logits(made: Any) -> Any:
        return made(known["test"])

    def accuracy(made: Any) -> float:
        return float((logits(made).argmax(1) == known["labels"]).float().mean())

    def renewed(made: Any) -> Any:
        reestimate_batchnorm(made, known["train"].split(100)[:-1])
        return made.eval()

    def change(before: Any, after: Any) -> float:
        return float((after - before).abs().max() / before.abs().max())

    names = ("objective", "accuracy", "changed", "renewed", "members")
    found: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(PAIRS):
        a, b, moved = (
            _loaded(case, folder / f"{pair}-{which}.safetensors")
            for which in ("a", "b", tool)
        )
        both = list(zip(a.parameters(), moved.parameters(), strict=True))
        products = (float((p.double() * q.double()).sum().detach()) for p, q in both)
        found["objective"].append(sum(products))
        found["members"].append((accuracy(a) + accuracy(b)) / 2)
        found["changed"].append(change(logits(b), logits(moved)))
        mean = _loaded(case, folder / f"{pair}-a.safetensors")
        state = mean.state_dict()
        for name, tensor in moved.state_dict().items():
            if tensor.is_floating_point():
                state[name] = (state[name] + tensor) / 2
        mean.load_state_dict(state)
        found["accuracy"].append(accuracy(renewed(mean)))
        again = change(logits(renewed(b)), logits(renewed(moved)))
        found["renewed"].append(again)
    return found


def rows(rig: Any) -> Iterator[Row]:
    """Yield the rows of all cases."""
    rival = rig.rival("rebasin")
    for case in CASES:
        folder = rig.folder("alignment", case)
        prepare(case, folder)
        ours, theirs = rig.turns("alignment", folder, rival, REPEATS)
        head = ("alignment", "rebasin", rival.version, case)
        for key, quantity, unit in (
            ("matching_seconds", "processor seconds of the search", "s"),
            ("with_spec_seconds", "... with finding out what may be permuted", "s"),
            ("peak_mb", "peak resident memory of the process", "MB"),
        ):
            runs = ([run[key] for run in side] for side in (ours, theirs))
            yield measured(*head, quantity, *runs, unit)
        mine, its, none = (
            judge(case, folder, side) for side in ("metaensemble", "rebasin", "b")
        )
        plain = {name: sum(values) / PAIRS for name, values in none.items()}
        for name, quantity, unit in (
            (
                "objective",
                f"objective (unaligned {plain['objective']:.1f})",
                "<A, P(B)>",
            ),
            (
                "accuracy",
                f"accuracy of the mean (members {plain['members']:.4f}, "
                f"unaligned mean {plain['accuracy']:.4f})",
                "fraction",
            ),
        ):
            yield paired(*head, quantity, mine[name], its[name], unit)
        for name, quantity in (
            ("changed", CHANGED),
            ("renewed", "... with statistics re-estimated"),
        ):
            if name == "renewed" and "norm" not in case:
                continue
            yield row(
                *head,
                quantity,
                max(mine[name]),
                max(its[name]),
                "of the largest",
                better="lower",
                tolerance=ROUNDING,
            )


if __name__ == "__main__":
    main({"metaensemble": ours, "rebasin": rebasin})
