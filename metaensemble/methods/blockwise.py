"""Block-wise compact students: a smaller network under a user's budget."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.budget import (
    CostModel,
    choose,
    macs_model,
    parameters_model,
    smallest,
)
from metaensemble.methods.compaction import (
    Channels,
    compact,
    folded,
    gated,
    prunable,
    slimmed,
)
from metaensemble.methods.contract import Batch, Stage, Task
from metaensemble.methods.features import (
    FeatureLearner,
    FeatureLoss,
    FeatureMethod,
    Features,
    Layout,
    to_one_size,
)
from metaensemble.metrics import macs, parameters
from metaensemble.teachers import Ensemble

MEMORY = 0.05
"""Weight of a step in the running mean of the channels' importance."""

Count = Annotated[float, Field(ge=1), AfterValidator(int)]
"""A whole number that may be written as 2e6."""

Budget = tuple[str, CostModel, float]
"""What is counted, the count by live channels, and the most it may be."""


class Blockwise(FeatureMethod):
    """Prune and distil block by block, after Ahmed et al. 2020.

    First the student learns with a gate on each channel:

        loss = KD + weight sum_b |adapter_b(student_b) - teacher_b|^2 / |teacher_b|^2
             + cost_weight max(0, cost(gates) - budget) / full cost,

    with the exact count of MACs or parameters as a function of the sums of the gates.
    Then the channels that matter least per cost saved are taken out until the count
    holds, and the small network learns on without gates. The paper's text was not to
    be had: beyond its abstract, this is a reconstruction.
    """

    summary: ClassVar[str] = "prune a student to a budget of MACs or parameters"
    paper: ClassVar[str] = "Ahmed, Zunino, Morerio, Murino 2020 (arXiv 2104.09191)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training in two stages; teachers run in each step"

    divisible: ClassVar[bool] = False

    name: Literal["blockwise"] = "blockwise"
    """The method's name."""
    max_macs: Count | None = None
    """Most multiply-accumulates of the student per image, such as 2e6; without any
    budget it is half of what the whole student has."""
    max_parameters: Count | None = None
    """Most parameters of the student, such as 1e5."""
    sparsify_epochs: float = Field(default=0.2, gt=0, lt=1)
    """Fraction of the epochs before the channels are taken out."""
    cost_weight: float = Field(default=1.0, ge=0)
    """Weight of the excess cost before that, relative to the whole student's cost."""
    least: float = Field(default=0.08, gt=0, le=1)
    """Fraction of every layer's channels that stays at the least."""

    def loss(self, layout: Layout) -> FeatureLoss:
        """Return the blocks' loss between the student and one teacher."""
        return BlockLoss(layout)

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the training with gates, then that of the smaller network.

        Raises:
            InputError: the budget is below the smallest possible student, or the
                network cannot be traced.
        """
        channels = prunable(student, task.input_shape)
        budgets, notes = self._budgets(student, channels, task)
        if all(model.full <= most for _, model, most in budgets):
            learner = FeatureLearner(self, student, teachers, task)
            notes.append(_said(budgets, student, task) + "; nothing was taken out")
            yield Stage(self.name_, self, learner, notes=tuple(notes))
            return
        first = self.epochs * self.sparsify_epochs
        settings = self.model_copy(update={"epochs": first, "selection": "last"})
        learner = GatedLearner(settings, student, teachers, task, channels, budgets)
        yield Stage(f"{self.name_}-sparsify", settings, learner)
        live = choose(
            channels,
            learner.importance,
            [(model, most) for _, model, most in budgets],
            self.least,
        )
        small, changed = compact(learner.export(), channels, live)
        del learner
        notes.append(_said(budgets, small, task))
        if channels.whole:
            notes.append(
                f"these keep all their channels, for they cannot be narrowed alone: "
                f"{', '.join(channels.whole)}"
            )
        settings = self.model_copy(update={"epochs": self.epochs - first})
        yield Stage(
            self.name_,
            settings,
            FeatureLearner(settings, small, teachers, task),
            architecture=slimmed(task.architecture, small, changed),
            notes=tuple(notes),
        )

    def _budgets(
        self, student: nn.Module, channels: Channels, task: Task
    ) -> tuple[list[Budget], list[str]]:
        """Return the budgets, and what is to be said of them.

        Raises:
            InputError: one is below the smallest possible student.
        """
        counted = {
            "MACs": (macs_model(student, channels, task.input_shape), self.max_macs),
            "parameters": (parameters_model(student, channels), self.max_parameters),
        }
        fewest = smallest(channels, self.least)
        if self.max_macs is None and self.max_parameters is None:
            model = counted["MACs"][0]
            most = max(float(model.full // 2), float(model(fewest)))
            said = f"no budget was given: it is {most:,.0f} MACs"
            return [("MACs", model, most)], [said]
        budgets: list[Budget] = []
        for what, (model, most) in counted.items():
            if most is None:
                continue
            possible = float(model(fewest))
            if most < possible:
                raise InputError(
                    f"--max-{what.lower()} must be at least {possible:,.0f}, the "
                    f"smallest that this student can be pruned to, but is {most:,.0f}; "
                    "raise it, lower --least, or choose a smaller --student"
                )
            budgets.append((what, model, float(most)))
        return budgets, []


class BlockLoss(FeatureLoss):
    """The mean over blocks of the error of a teacher's map, relative to its power.

    A linear map of the channels (1x1 convolution) takes the student's map to the
    teacher's. It starts at zero: before it has learnt, it moves no student.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Conv2d(own.channels, its.channels, 1)
            for own, its in zip(layout.student, layout.teacher, strict=True)
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the loss, a scalar."""
        terms: list[Tensor] = []
        maps = zip(self.adapters, student.maps, teacher.maps, strict=True)
        for adapter, own, its in maps:
            own, its = to_one_size(own, its)
            power = its.square().mean().clamp_min(1e-8)
            terms.append((adapter(own) - its).square().mean() / power)
        return torch.stack(terms).mean()


class GatedLearner(FeatureLearner):
    """Trains a student with a gate in [0, 1] on each of its prunable channels.

    A channel's importance is the running mean of (gate x gradient of the loss by the
    gate)^2, without the cost's part: what Molchanov et al. 2019 (arXiv 1906.10771,
    equation 8) expect to be lost without it.
    """

    gates: Tensor
    importance: Tensor

    def __init__(
        self,
        method: Blockwise,
        student: nn.Module,
        teachers: Ensemble,
        task: Task,
        channels: Channels,
        budgets: list[Budget],
    ):
        super().__init__(method, student, teachers, task)
        self.channels = channels
        self.budgets = budgets
        self.cost_weight = method.cost_weight
        device = next(student.parameters()).device
        self.gates = nn.Parameter(torch.ones(channels.count, device=device))
        self.register_buffer("importance", torch.zeros_like(self.gates))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms on logits and features, and the excess cost."""
        with torch.no_grad():
            self.gates.clamp_(0, 1)
        gates = self.gates.clone()
        if gates.requires_grad:
            gates.register_hook(self._weigh)
        with gated(self.student, self.channels, gates):
            losses = super().forward(batch)
        losses["cost"] = self.cost_weight * self.excess().to(gates.dtype)
        return losses

    def excess(self) -> Tensor:
        """Return by how much the relaxed costs are above the budgets.

        Relative to the whole student's; the sum over budgets.
        """
        live = self.channels.totals(self.gates)
        over = [
            (model(live) - most).clamp_min(0) / model.full
            for _, model, most in self.budgets
        ]
        return torch.stack(over).sum()

    def export(self) -> nn.Module:
        """Return the whole student with its gates folded into its weights."""
        return folded(self.student, self.channels, self.gates.detach().clamp(0, 1))

    def _weigh(self, gradient: Tensor) -> None:
        effect = (self.gates.detach() * gradient.detach()).square()
        self.importance.lerp_(effect, MEMORY)


def _said(budgets: list[Budget], network: nn.Module, task: Task) -> str:
    """Return what became of the budgets, as the exact counters see it."""
    counts = {
        "MACs": macs(network, task.input_shape),
        "parameters": parameters(network),
    }
    assert all(counts[what] <= most for what, _, most in budgets)
    said = [
        f"budget {most:,.0f} {what}: kept {counts[what]:,} of {model.full:,.0f} "
        f"({counts[what] / model.full:.0%})"
        for what, model, most in budgets
    ]
    others = [k for k in counts if k not in {what for what, _, _ in budgets}]
    return "; ".join([*said, *(f"{counts[k]:,} {k}" for k in others)])
