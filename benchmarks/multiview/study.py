"""One draw of the study: what is trained in a world, and what it learnt there."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from learners import OnLabels, OnLogits, RandomFeatures, Summed
from torch import Tensor, nn

from metaensemble.core.seeds import derive_seed, seeded
from metaensemble.data.multiview import BOTH, GREY, STRONG, UNIT, MultiView
from metaensemble.engine import TrainingBatches, evaluate, fit
from metaensemble.methods import KD, Learner, Supervised
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, ensemble_log_probs
from metaensemble.teachers.outputs import network_logits
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import distil_student
from metaensemble.workflows.teach import teach_members

COMMAND = "python benchmarks/multiview/run.py"
STUDENTS = ("distilled", "self-distilled")

Row = dict[str, Any]
"""The figures of an arm on one draw."""

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
