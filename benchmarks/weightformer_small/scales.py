"""The sizes at which the study runs."""

from dataclasses import dataclass, field
from typing import Any

from metaensemble.methods import Supervised
from metaensemble.workflows.teach import Knowledge

REGIMES = ("one-start", "unequal", "independent")


@dataclass(frozen=True)
class Scale:
    """One size of the study: networks, data, zoos, budgets."""

    architecture: str
    limit_train: int | None
    """Labelled images, a tenth of them for validation; None: all there are."""
    zoo: int
    """Members to learn from, `held_out` of them for selection."""
    unseen: int
    """Members of a draw that the predictor never sees."""
    start: Supervised
    """The common start's training, on half of the labelled images."""
    fine_tune: Supervised
    """That of a member which starts there; rates are `RATES` in turn."""
    alone: Supervised
    """That of a member which starts from random weights."""
    knowledge: dict[str, Knowledge]
    """By regime: what each member sees of the labelled images."""
    budgets: dict[str, tuple[int, ...]]
    """By regime, images in all: of distillation, and of tuning. The last is what one
    member was trained on, its start's training included."""
    generators: dict[str, dict[str, dict[str, Any]]]
    """By regime and name: generators, chosen on held-out members (benchmarks/LOG.md).
    Students of the first are tuned."""
    teachers: tuple[int, int] = (2, 6)
    """Smallest and largest number drawn per step."""
    draws: int = 3
    held_out: int = 4
    device: str = "cpu"
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the fine-tunes, in turn, in units of that of `fine_tune`."""
    refine: dict[str, str] = field(
        default_factory=lambda: {
            "one-start": "learned_soup",
            "unequal": "learned_soup",
            "independent": "regression_merge",
        }
    )


HALF = Knowledge(subset=0.5)
MEMORY: dict[str, Any] = {
    "reference": "frame",
    "offset": True,
    "readout": "pooled",
    "width": 32,
    "depth": 1,
    "gain": 0.02,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "clip": 5.0,
    "epochs": 2.0,
    "batch_size": 128,
    "shift_weight": 0.0,
    "views": 1,
}
"""One network that is distilled from subsets of the zoo, whoever the teachers are."""
READER: dict[str, Any] = {
    "head": "mixture",
    "reference": "mean",
    "readout": "pooled",
    "width": 64,
    "depth": 2,
    "gain": 0.02,
    "offset": True,
    "epochs": 4.0,
    "learning_rate": 1e-3,
    "views": 1,
}
"""Shares of the teachers per channel and a small residual, read off their weights."""
SMALL = Scale(
    architecture="convnet,width=32",
    limit_train=10_000,
    zoo=16,
    unseen=4,
    start=Supervised(epochs=10, learning_rate=0.1),
    fine_tune=Supervised(epochs=10, learning_rate=0.1),
    alone=Supervised(epochs=20, learning_rate=0.1),
    knowledge={
        "one-start": Knowledge(subset=0.2),
        "unequal": Knowledge(subset=0.5, classes_each=5),
        "independent": HALF,
    },
    budgets={
        "one-start": (20_000, 63_000),
        "unequal": (),
        "independent": (20_000, 90_000),
    },
    generators={
        "one-start": {"memory": MEMORY, "reader": READER},
        "unequal": {"reader": {**READER, "gain": 0.3}, "memory": MEMORY},
        "independent": {"memory": MEMORY},
    },
)
SCALES: dict[str, Scale] = {
    "small": SMALL,
    "smoke": Scale(
        architecture="mlp,width=8",
        limit_train=60,
        zoo=4,
        unseen=2,
        start=Supervised(epochs=2),
        fine_tune=Supervised(epochs=1),
        alone=Supervised(epochs=1),
        knowledge=dict.fromkeys(REGIMES, HALF),
        budgets={"one-start": (100,), "unequal": (), "independent": (100,)},
        generators={
            r: {
                "memory": {**MEMORY, "epochs": 0.5, "batch_size": 16},
                "reader": {**READER, "epochs": 0.5, "batch_size": 16},
            }
            for r in REGIMES
        },
        teachers=(2, 2),
        draws=2,
        held_out=2,
    ),
}
"""small: as in the README; smoke: seconds, to see that all of it runs."""
for name, epochs in (("vgg11_bn", 40), ("resnet50_32x32", 30)):
    SCALES[f"gpu-{name}"] = Scale(
        architecture=name,
        limit_train=None,
        zoo=12,
        unseen=4,
        start=Supervised(epochs=epochs, learning_rate=0.1),
        fine_tune=Supervised(epochs=epochs // 3, learning_rate=0.05),
        alone=Supervised(epochs=epochs, learning_rate=0.1),
        knowledge={
            "one-start": Knowledge(subset=0.2),
            "unequal": Knowledge(subset=0.5, classes_each=5),
            "independent": HALF,
        },
        budgets={
            "one-start": (20_000, 200_000, 1_000_000),
            "unequal": (),
            "independent": (20_000, 200_000, 1_000_000),
        },
        generators={
            r: {
                "memory": {**MEMORY, "attention": "axial", "epochs": 10.0},
                "reader": {**READER, "attention": "axial", "epochs": 20.0},
            }
            for r in REGIMES
        },
        device="cuda",
    )
