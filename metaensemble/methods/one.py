"""An ensemble of branches on one trunk, which teaches each of its branches."""

import copy
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Batch, Stage, Task
from metaensemble.methods.distillation import tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.methods.online import (
    Grown,
    OnlineLearner,
    OnlineMethod,
    other_networks,
)
from metaensemble.models import Architecture
from metaensemble.models.architecture import BRANCHES, SLIM
from metaensemble.models.branches import Branched
from metaensemble.models.gated import Gated, gate_for, gated_slim, weighed
from metaensemble.teachers import Ensemble


class One(OnlineMethod):
    """Lan et al. 2018: branches on one trunk learn from their gated ensemble.

    loss = sum_i CE(labels, branch i) + CE(labels, z)
           + w T^2 sum_i KL(z at T, branch i at T)

    z is the sum of the branches' logits, weighed for each image by a gate; as a target
    it is held fixed. All stages but the last are the trunk (of networks without stages,
    two thirds), and each branch starts from other weights. Images without a label take
    part in the divergence only. Every branch with the trunk is a plain network; the
    first is the student. All of them with the gate are the network "gated" (ONE-E).

    Differences from the authors' code: w rises with every step, not every epoch; no
    1e-7 is added to the target; a batch of one image passes the gate's batch norm.
    """

    summary: ClassVar[str] = "branches on one trunk learn from their gated ensemble"
    paper: ClassVar[str] = "Lan, Zhu, Gong 2018 (arXiv 1806.04606)"
    needs: ClassVar[tuple[str, ...]] = ("labels (training)",)
    cost: ClassVar[str] = "one training of a trunk and `branches` last stages"

    name: Literal["one"] = "one"
    """The method's name."""
    branches: int = Field(default=3, ge=2)
    """How many networks share the trunk."""
    temperature: float = Field(default=3.0, gt=0)
    """T: both distributions are softened by it; the divergence is scaled by T^2."""
    ramp: float = Field(default=0.27, ge=0, le=1)
    """Fraction of the training in which w rises from exp(-5) to 1; the authors' code:
    80 of 300 epochs. With 0, as in the paper, w is 1 throughout."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training."""
        del teachers  # there are none
        learner = OneLearner(self, student, task)
        yield Stage(self.name_, self, learner, notes=(learner.described(),))


class OneLearner(OnlineLearner):
    """Trains the trunk, the branches and the gate."""

    def __init__(self, config: One, student: nn.Module, task: Task) -> None:
        super().__init__()
        self.config = config
        self.architecture = Architecture.parse(task.architecture)
        if BRANCHES in self.architecture.fields:
            raise InputError(
                f"--student must be one network for one, but {task.architecture} has "
                "branches already; leave out branches"
            )
        self.ramp_steps = config.ramp * task.steps(config)
        others = other_networks(student, task, config.branches - 1)
        self.body = Branched([student, *others], task.input_shape)
        self.gate = gate_for(self.body, task.input_shape)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the labels' terms of branches and ensemble, and the divergence."""
        value, logits = self.body(batch.inputs)
        together = weighed(self.gate(value), logits)
        temperature = self.config.temperature
        target = (together.detach() / temperature).log_softmax(-1)
        terms = [tempered_kl(target, branch, temperature) for branch in logits]
        labels = [label_loss(branch, batch.labels) for branch in logits]
        weight = ramp_at(batch.step, self.ramp_steps)
        return {
            "label": torch.stack(labels).sum(),
            "ensemble": label_loss(together, batch.labels),
            "distillation": weight * torch.stack(terms).sum(),
        }

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the branches' logits."""
        return self.body(inputs)[1]

    def export(self) -> nn.Module:
        """Return the first branch's plain network."""
        return self.body.plain(0).eval()

    def networks(self) -> list[Grown]:
        """Return the branches' plain networks, and all of them with the gate."""
        count = self.config.branches
        plain = [Grown(f"branch-{i}", self.body.plain(i).eval()) for i in range(count)]
        whole = self.gated()
        architecture = self.architecture
        text = architecture.fields.get(SLIM)
        architecture = architecture.full.branched(count)
        if text is not None:
            architecture = architecture.slimmed(gated_slim(whole, str(text)))
        return [*plain, Grown("gated", whole, str(architecture), member=False)]

    def gated(self) -> Gated:
        """Return all branches with the gate as one network, detached."""
        parts = copy.deepcopy((self.body.trunk, self.body.branches, self.gate))
        return Gated(*parts).eval()

    def described(self) -> str:
        """Return how the network was split, as a sentence of the report."""
        shared = sum(p.numel() for p in self.body.trunk.parameters())
        own = sum(p.numel() for p in self.body.branches[0].parameters())
        count = self.config.branches
        return f"{count} branches of {own:,} parameters share a trunk of {shared:,}"


def ramp_at(step: int, steps: float) -> float:
    """Return the divergence's weight: exp(-5 (1 - min(t, R) / R)^2).

    Args:
        step: t, from 0.
        steps: R, until the weight is 1; 0 for 1 throughout.
    """
    if steps <= 0:
        return 1.0
    return math.exp(-5 * (1 - min(step, steps) / steps) ** 2)
