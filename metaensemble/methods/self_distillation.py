"""Self-distillation: each generation learns from the one before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import Batch, Stage, Task
from metaensemble.methods.distillation import tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.methods.online import (
    Grown,
    OnlineLearner,
    OnlineMethod,
    detached,
    other_networks,
)
from metaensemble.teachers import Ensemble

Target = Callable[[Batch], Tensor]
"""Returns a teacher's log-probabilities at T, (batch, classes), for a batch."""


class SelfDistillation(OnlineMethod):
    """Born-again networks (Furlanello et al. 2018), alone or for every member.

    Without members: generation 0 learns from labels, and each later one is a fresh
    network of the same architecture that learns from the one before it:

        loss = (1 - w) T^2 KL(generation k - 1 at T || generation k at T) + w CE(labels)

    The last is shipped. With members: each member is self-distilled in this way into a
    fresh network of its own architecture, and the ensemble of these networks is then
    distilled into the student by the same loss.

    A student always starts from another seed than its teacher, because that is what
    makes the two learn different features (Allen-Zhu and Li 2020, arXiv 2012.09816);
    from the same seed the gain is not to be expected.
    """

    summary: ClassVar[str] = "fresh networks that learn from their like; also members'"
    paper: ClassVar[str] = "Furlanello et al. 2018 (arXiv 1805.04770)"
    needs: ClassVar[tuple[str, ...]] = ("labels (training)",)
    cost: ClassVar[str] = "one training per generation; with members, that for each"
    takes_members: ClassVar[bool] = True

    name: Literal["self_distillation"] = "self_distillation"
    """The method's name."""
    generations: int = Field(default=1, ge=1)
    """How many times a network is distilled into a fresh one of its architecture."""
    temperature: float = Field(default=2.0, gt=0)
    """T: both distributions are softened by it; the loss is scaled by T^2."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """w: weight of the labels' cross-entropy where there is a teacher; 1 is plain
    training."""
    with_members: bool = False
    """Whether the given members teach the student beside the networks that were made
    of them; each half then weighs the same."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield a training per generation, each when the one before it is done."""
        if len(teachers):
            return self._of_members(student, teachers, task)
        return self._alone(student, task)

    def _alone(self, student: nn.Module, task: Task) -> Iterator[Stage]:
        earlier: tuple[Frozen, ...] = ()
        for generation in range(self.generations + 1):
            network, target = student, None
            if earlier:
                network = other_networks(student, task, 1)[0]
                target = self._taught(earlier[-1])
            learner = GenerationLearner(self, network, target, earlier)
            yield Stage(f"{self.name_}-{generation}", self, learner)
            earlier = (*earlier, Frozen(learner.network))

    def _of_members(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        made: dict[int, Frozen] = {}
        for place, member in enumerate(teachers.members):
            target = self._said(place)
            for generation in range(1, self.generations + 1):
                network = other_networks(student, task, 1, member.info.architecture)[0]
                learner = MemberLearner(self, network, target)
                name = f"{self.name_}-member-{place}-{generation}"
                yield Stage(name, self, learner)
                made[place] = Frozen(learner.network)
                target = self._taught(made[place])
        target = self._together(list(made.values()), teachers)
        learner = GenerationLearner(self, student, target)
        times = "" if self.generations == 1 else f" {self.generations} times"
        note = (
            f"each member was self-distilled{times} before the ensemble was distilled"
        )
        yield Stage(self.name_, self, learner, notes=(note,))

    def _taught(self, teacher: "Frozen") -> Target:
        return lambda batch: (teacher(batch.inputs) / self.temperature).log_softmax(-1)

    def _said(self, place: int) -> Target:
        def target(batch: Batch) -> Tensor:
            assert batch.teacher_logits is not None
            logits = batch.teacher_logits[place] / self.temperature
            return logits.log_softmax(-1)

        return target

    def _together(self, made: "Sequence[Frozen]", given: Ensemble) -> Target:
        """Return the ensemble of new networks, weighed as the members they came of."""
        ensemble, count = given, len(given)
        if self.with_members:
            ensemble = replace(
                given,
                members=given.members * 2,
                silent=(*given.silent, *(count + i for i in given.silent)),
                weights=given.weights and tuple(w / 2 for w in given.weights * 2),
            )

        def target(batch: Batch) -> Tensor:
            logits = torch.stack([network(batch.inputs) for network in made])
            if self.with_members:
                assert batch.teacher_logits is not None
                logits = torch.cat([logits, batch.teacher_logits.to(logits)])
            return ensemble.log_probs(logits, self.temperature)

        return target


class Frozen:
    """A copy of a network that teaches: in eval mode, and nothing ever changes it.

    No `nn.Module`, so that a learner that holds it neither trains nor saves it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = detached(network).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images."""
        return self.network(inputs)


class GenerationLearner(OnlineLearner):
    """Trains a network on labels, or on a teacher and labels.

    Args:
        config: temperature and weights.
        network: to be trained.
        target: the teacher; None for labels alone.
        earlier: the generations before it, from the first.
    """

    def __init__(
        self,
        config: SelfDistillation,
        network: nn.Module,
        target: Target | None = None,
        earlier: Sequence[Frozen] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.weight = config.label_weight if target else 1.0
        self.temperature = config.temperature
        self.target = target
        self.earlier = tuple(earlier)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the teacher and of the labels that have weight."""
        logits = self.network(batch.inputs)
        losses: dict[str, Tensor] = {}
        if self.target is not None and self.weight < 1:
            loss = tempered_kl(self.target(batch), logits, self.temperature)
            losses["distillation"] = (1 - self.weight) * loss
        if self.weight:
            losses["label"] = self.weight * label_loss(logits, batch.labels)
        return losses

    def networks(self) -> list[Grown]:
        """Return all generations, the last one first."""
        networks = [*(frozen.network for frozen in self.earlier), self.network]
        grown = [
            Grown(f"generation-{i}", detached(each)) for i, each in enumerate(networks)
        ]
        return grown[::-1]

    def export(self) -> nn.Module:
        """Return the network."""
        return detached(self.network)

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the network's logits."""
        return self.network(inputs)[None]


class MemberLearner(GenerationLearner):
    """Trains a network that is to take a member's place among the teachers."""

    preparation: ClassVar[bool] = True
