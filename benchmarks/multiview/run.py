"""The theory's world: what ensembles and their students learn in it, over ten seeds.

Command: .venv/bin/python benchmarks/multiview/run.py        (MINUTES of one core)
Expect, as Allen-Zhu and Li (arXiv 2012.09816) prove it: a single network errs on
single-view images, since its seed decides which of a class's features it learns;
single < self-distilled < distilled <= ensemble; no such gain for networks that are
trained together, nor from distilling networks of random features.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from learners import OnLabels, OnLogits, RandomFeatures, Summed
from scipy.stats import t as student_t
from torch import Tensor, nn

from metaensemble.core.files import write_json, write_text
from metaensemble.core.seeds import derive_seed, seeded
from metaensemble.data import load_data
from metaensemble.data.multiview import BOTH, GREY, STRONG, UNIT, MultiView
from metaensemble.engine import RunLog, TrainingBatches, evaluate, fit
from metaensemble.methods import KD, Learner, Supervised
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, ensemble_log_probs
from metaensemble.teachers.outputs import network_logits
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.students import distil_student
from metaensemble.workflows.teach import teach_members

HERE = Path(__file__).parent
COMMAND = "python benchmarks/multiview/run.py"
STUDENTS = ("distilled", "self-distilled")


TEACHING = Supervised(
    epochs=40, batch_size=100, learning_rate=0.2, weight_decay=0, clip=0.2
)
"""Of members; students have their budget. What is limited is the gradient after a
feature was found, not before: the race of small weights needs a high rate."""
HEAD = Supervised(
    epochs=50, batch_size=100, optimizer="adamw", learning_rate=0.003, weight_decay=0
)
"""Of the linear heads on random features."""


@dataclass(frozen=True)
class Setting:
    """What is trained, on which world; the settings were chosen on seeds from 100."""

    world: str = "multiview,train=1600,test=8000,noise=0.13"
    """Half of its training images are the validation split."""
    architecture: str = "patchnet,width=4,power=3,scale=0.0003"
    teaching: Supervised = field(default_factory=lambda: TEACHING)
    temperature: float = 4.0
    """Of the distillation from the ensemble, which brings no labels."""
    self_temperature: float = 2.0
    self_label_weight: float = 0.5
    """A single teacher knows few features more than its student would find by itself;
    the labels let the student win its own ones."""
    members: int = 10
    self_students: int = 10
    """Members that are distilled, each alone, into a network of another seed."""
    joint: int = 2
    """How many times as many networks as members are trained together."""
    features: int = 100
    """Filters of a network of random features."""
    bias: float = 1.0
    """What their responses must exceed."""
    head: Supervised = field(default_factory=lambda: HEAD)


SEEDS = range(20, 30)
"""Those from 100 served to choose the settings; 0, 5, 10 and 15 were seen meanwhile."""
SETTING = Setting()
ARMS = {
    "single": "single network, mean of {members}",
    "self-distilled": "self-distilled (other seed), mean of {self_students}",
    "distilled": "distilled from the ensemble",
    "ensemble": "ensemble of {members}",
    "joint sum": "{members} networks trained jointly, sum of logits, mean of {joint}",
    "joint mean": "{members} networks trained jointly, mean of logits, mean of {joint}",
    "random features": "random features, mean of {members}",
    "random features, distilled": "random features distilled from their ensemble",
    "random features, ensemble": "ensemble of {members} random-feature networks",
}
"""The rows of the table."""
GAINS = (
    ("self-distilled", "single"),
    ("distilled", "self-distilled"),
    ("ensemble", "distilled"),
    ("joint sum", "single"),
    ("joint mean", "single"),
    ("random features, ensemble", "random features"),
    ("random features, distilled", "random features"),
)
"""Whose difference is shown, pair by pair of the same seed."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--on", choices=["test", "validation"], default="test")
    parser.add_argument("--out", type=Path, help="a folder; default: print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in options.seeds:
        rows += drawn(seed, SETTING, options.arms)
        print(f"seed {seed}\n{table(rows, SETTING, options.on)}", flush=True)
        if options.out is not None:
            written(options.out, rows)


def written(folder: Path, rows: list[Row]) -> None:
    """Write the report and the table of rows."""
    report = {"schema": 1, "study": "multiview", "command": COMMAND, "rows": rows}
    write_json(folder / "report.json", report)
    write_text(folder / "table.md", table(rows))


def drawn(
    seed: int, setting: Setting = SETTING, arms: Sequence[str] = tuple(ARMS)
) -> list[Row]:
    """Return the rows of one draw: its own world, its own networks.

    Args:
        seed: of the world, the split and, times 1000, of the networks.
        setting: what is trained.
        arms: which; members are trained for all but the joint and random ones.
    """
    text = f"{setting.world},seed={seed}"
    data = load_data(text, validation_fraction=0.5, seed=seed)
    with tempfile.TemporaryDirectory() as name, RunLog(quiet=True) as log:
        folder = Path(name)
        running = RunOptions(seed=1000 * seed, device="cpu", cache=folder / "cache")
        study = Study(
            setting, MultiView.parse(text), open_session(running, data, None, log)
        )
        found: dict[str, list[nn.Module]] = {}
        if set(arms) & {"single", "ensemble", *STUDENTS}:
            found |= study.of_members(folder, arms)
        for arm, factor in (("joint sum", 1.0), ("joint mean", 1 / setting.members)):
            if arm in arms:
                found[arm] = [study.jointly(factor, i) for i in range(setting.joint)]
        if any(arm.startswith("random") for arm in arms):
            found |= study.of_random_features()
        return [study.row(seed, arm, found[arm]) for arm in ARMS if arm in found]


@dataclass(frozen=True)
class Study:
    """One draw: a world and the session in which networks are trained on it."""

    setting: Setting
    world: MultiView
    session: Session

    def of_members(
        self, folder: Path, arms: Sequence[str]
    ) -> dict[str, list[nn.Module]]:
        """Return members, their ensemble, and the students of both kinds."""
        setting, session = self.setting, self.session
        taught = teach_members(
            session,
            folder,
            architecture=setting.architecture,
            members=setting.members,
            method=setting.teaching,
            command=COMMAND,
        )
        networks = [member.network() for member in taught]
        found: dict[str, list[nn.Module]] = {"single": networks}
        found["ensemble"] = [MeanOfProbabilities(networks)]
        if "distilled" in arms:
            method = self.kd(setting.temperature, 0.0)
            student = distil_student(
                session.reseeded(session.seed + 500), Ensemble(tuple(taught)), method
            )
            found["distilled"] = [student.network]
        if "self-distilled" in arms:
            method = self.kd(setting.self_temperature, setting.self_label_weight)
            found["self-distilled"] = [
                distil_student(
                    session.reseeded(session.seed + 600 + i),
                    Ensemble((member,)),
                    method,
                ).network
                for i, member in enumerate(taught[: setting.self_students])
            ]
        return found

    def kd(self, temperature: float, label_weight: float) -> KD:
        """Return the project's method at a member's budget, from fresh weights."""
        teaching = self.setting.teaching
        same = ("epochs", "batch_size", "learning_rate", "weight_decay", "clip")
        return KD(
            start="scratch",
            temperature=temperature,
            label_weight=label_weight,
            selection="last",
            **{name: getattr(teaching, name) for name in same},
        )

    def jointly(self, factor: float, trial: int) -> nn.Module:
        """Return as many networks as members, trained together on labels.

        Each network is to move as fast as it would alone: the loss is divided by the
        factor, and the limit on the gradient's norm is one network's times the root of
        their number.
        """
        setting, count = self.setting, self.setting.members
        data = self.session.data
        networks = [
            init_model(
                setting.architecture,
                data.num_classes,
                data.input_shape,
                derive_seed(self.session.seed, "joint", trial, i),
            )
            for i in range(count)
        ]
        clip = setting.teaching.clip * count**0.5
        method = setting.teaching.model_copy(update={"clip": clip})
        return self.fitted(OnLabels(Summed(networks, factor), 1 / factor), method)

    def of_random_features(self) -> dict[str, list[nn.Module]]:
        """Return networks of random features, their ensemble, and its student."""
        setting, data = self.setting, self.session.data
        fresh: list[nn.Module] = []
        for i in range(setting.members + 1):
            with seeded(self.session.seed, "random features", i):
                _, height, _ = data.input_shape
                network = RandomFeatures(
                    data.num_classes, height, setting.features, setting.bias
                )
            fresh.append(network)
        *alone, student = fresh
        alone = [self.fitted(OnLabels(n), setting.head) for n in alone]
        logits = torch.stack(
            [network_logits(n, data.normalization, data.train) for n in alone]
        )
        learner = OnLogits(student, logits, setting.temperature)
        return {
            "random features": alone,
            "random features, ensemble": [MeanOfProbabilities(alone)],
            "random features, distilled": [self.fitted(learner, setting.head)],
        }

    def fitted(self, learner: Learner, method: Supervised) -> nn.Module:
        """Return what a learner exports after its training on the training images."""
        session, data = self.session, self.session.data
        batches = TrainingBatches(
            data.train,
            data.augmentation,
            data.normalization,
            method.batch_size,
            session.seed,
        )
        fit(
            learner,
            method,
            batches,
            batches.steps_per_epoch,
            seed=session.seed,
            log=session.log,
            what=type(learner).__name__,
            validate=None,
        )
        return learner.export().eval()

    def row(self, seed: int, arm: str, networks: list[nn.Module]) -> Row:
        """Return the figures of an arm, means over its networks."""
        figures = [self.figures(network) for network in networks]
        means = {key: statistics.mean(f[key] for f in figures) for key in figures[0]}
        return {"draw": seed, "arm": arm, "networks": len(networks), **means}

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Return a network's accuracies and the share of features that it learned."""
        data = self.session.data
        validation = evaluate(network, data.normalization, data.validation)
        test = evaluate(network, data.normalization, data.test)
        right = (test.log_probs.argmax(1) == data.test.labels).double()
        single = self.world.draw("test").views != BOTH
        return {
            "validation": validation.measured.accuracy,
            "test": test.measured.accuracy,
            "single_view": right[single].mean().item(),
            "multi_view": right[~single].mean().item(),
            "features_learned": self.learned(network),
        }

    @torch.no_grad()
    def learned(self, network: nn.Module) -> float:
        """Return the share of features that, alone in an image, name their class.

        The image is grey but for the feature, at the middle of its strength; named
        means with a probability above one half.
        """
        features = self.world.features
        count, height = features.shape
        values = torch.zeros(count, 1, height, self.world.patches)
        values[:, 0, :, 0] = sum(STRONG) / 2 * features
        pixels = (GREY + UNIT * values).round().to(torch.uint8)
        probs = network(self.session.data.normalization(pixels)).softmax(-1)
        own = probs[torch.arange(count), torch.arange(count) // 2]
        return (own > 0.5).double().mean().item()


class MeanOfProbabilities(nn.Module):
    """An ensemble whose output is the logarithm of its members' mean probabilities."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes)."""
        logits = torch.stack([network(images) for network in self.networks])
        return ensemble_log_probs(logits)


def per_draw(rows: list[Row], arm: str, figure: str) -> list[float]:
    """Return an arm's figure, draw by draw."""
    chosen = [row for row in rows if row["arm"] == arm]
    return [row[figure] for row in sorted(chosen, key=lambda row: row["draw"])]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (Student's t)."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return mean, float("nan")
    quantile = float(student_t.ppf(0.975, count - 1))
    return mean, quantile * statistics.stdev(values) / count**0.5


def table(rows: list[Row], setting: Setting = SETTING, on: str = "test") -> str:
    """Return the accuracies and the gains in Markdown.

    Args:
        rows: of `drawn`.
        setting: gives the numbers of networks.
        on: "test", or "validation", which shows no figure of the test split.
    """
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    columns = {on: f"{on} accuracy"}
    if on == "test":
        columns |= {"single_view": "single-view images"}
        columns |= {"multi_view": "multi-view images"}
    columns |= {"features_learned": "features learned"}
    lines = [f"| | {' | '.join(columns.values())} |"]
    lines.append(f"| --- |{' ---: |' * len(columns)}")
    for arm in arms:
        cells = [_cell(per_draw(rows, arm, figure)) for figure in columns]
        title = ARMS[arm].format(**vars(setting))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    *shown, _ = columns
    names = [columns[figure] for figure in shown]
    lines += ["", f"| difference | {' | '.join(names)} |"]
    lines.append(f"| --- |{' ---: |' * len(names)}")
    for better, worse in GAINS:
        if better in arms and worse in arms:
            cells = [_cell(gains(rows, better, worse, figure)) for figure in shown]
            lines.append(f"| {better} - {worse} | {' | '.join(cells)} |")
    draws = len({row["draw"] for row in rows})
    lines += ["", f"*In %; ± half of the 95 % interval over {draws} seeds.*", ""]
    return "\n".join(lines)


def gains(rows: list[Row], better: str, worse: str, figure: str) -> list[float]:
    """Return the difference of two arms, draw by draw."""
    pairs = zip(
        per_draw(rows, better, figure), per_draw(rows, worse, figure), strict=True
    )
    return [a - b for a, b in pairs]


def _cell(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


def read(path: Path) -> list[Row]:
    """Return the rows of a report."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


if __name__ == "__main__":
    main()
