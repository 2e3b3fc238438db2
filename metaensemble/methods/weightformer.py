"""WeightFormer: train the generator through the student that it writes.

The student's weights are the generator's output, and the loss of the student is the
generator's: gradients pass through `torch.func.functional_call` (Fei et al. 2022,
figure 2). Nothing is ever loaded with `load_state_dict` in between, which would cut
them.
"""

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.seeds import generator as seeded_generator
from metaensemble.core.states import State
from metaensemble.methods.contract import Batch, Learner, TrainedMethod
from metaensemble.methods.divergence import Direction, kl_divergence, label_loss
from metaensemble.methods.frame import FrameKind, make_frame, to_frame
from metaensemble.methods.reading import Reading, Sources, read
from metaensemble.teachers import Average, Ensemble, ensemble_log_probs, kinship
from metaensemble.weightformer import (
    MERGED,
    Predictor,
    PredictorInfo,
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
)


class GeneratorTraining(WeightFormerConfig, TrainedMethod):
    """The generator's shape and how it is trained through the student it writes."""

    summary: ClassVar[str] = "a Transformer reads N networks' weights and writes one's"
    paper: ClassVar[str] = (
        "Fei et al. 2022, Meta-Ensemble Parameter Learning (2210.01973)"
    )
    needs: ClassVar[tuple[str, ...]] = ("one architecture", "images to train on")
    cost: ClassVar[str] = "train the generator once; then one forward pass per ensemble"

    direction: Direction = "forward"
    """forward: KL(mean teacher || student); reverse: equation 1 of the paper."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the labels' cross-entropy (the paper has none)."""
    shift: int = Field(default=1, ge=0)
    """Tokens by which the second look of the shift-consistency loss is shifted."""
    shift_weight: float = Field(default=0.1, ge=0)
    """Weight of the shift-consistency loss; 0 leaves it out."""
    epochs: float = Field(default=20, gt=0)
    """Passes over the images to train the generator."""
    batch_size: int = Field(default=256, ge=1)
    """Images per generated student."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The generator's optimizer."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of the generator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """The generator's weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the generator's gradient."""
    align: Literal["auto", "always", "never"] = "never"
    """Bring all teachers' channels to one order, that of the frame, before they are
    read, in training and in prediction; auto: where the zoo shares no start."""
    frame: FrameKind = "first"
    """The network that gives the order: the zoo's first member, or merge, the mean of
    the aligned zoo. It is saved with the predictor."""
    pool: int = Field(default=32, ge=1)
    """Where a set of teachers takes images (data tokens, a merge as reference): sets
    that are prepared before training and drawn from; without, every step draws anew."""
    recompute: bool = False
    """Keep no activations of the generator for backward, but compute them again, layer
    by layer: less memory, a third more time."""

    @property
    def generator(self) -> WeightFormerConfig:
        """Return the fields that shape the generator."""
        names = WeightFormerConfig.model_fields
        return WeightFormerConfig(**{name: getattr(self, name) for name in names})


Refinement = Literal["none", "learned_soup", "regression_merge"]
"""How a predicted student is merged with its teachers."""


class WeightFormerMethod(GeneratorTraining):
    """A generator for one fixed set of teachers, then tuning of what it predicts."""

    fewest_members: ClassVar[int] = 2

    name: Literal["weightformer"] = "weightformer"
    """The method's name."""
    refine: Refinement = "none"
    """After prediction, merge the student with its teachers, on images, to match their
    ensemble: shares of each tensor are learned, or layers fitted in closed form."""
    tune_epochs: float = Field(default=5, ge=0)
    """After prediction, passes of distillation that tune the student; 0 for none."""
    tune_learning_rate: float = Field(default=0.02, gt=0)
    """Peak rate of the tuning."""

    def learner(
        self,
        student: nn.Module,
        teachers: Ensemble | None,
        sources: Sources | None = None,
    ) -> "WeightFormerLearner":
        """Return the learner for a fixed set of teachers, the paper's main experiment.

        Every step reads all of them, in their order.
        """
        assert teachers is not None
        return WeightFormerLearner(self, student, teachers, teachers, sources=sources)


class WeightFormerLearner(Learner):
    """The generator under training.

    Args:
        config: hyperparameters.
        student: a network of the architecture; only its structure is used.
        zoo: the members to train on; the batches bring all their logits, in order.
        audience: the members that `export` predicts a student for. The zoo itself for a
            fixed set; for a predictor, members that training does not read.
        draw: smallest and largest number of members drawn per step, in random order;
            None reads the whole zoo in its order.
        seed: of the draws.
        sources: of merges and images, for a generator that needs them.
    """

    stale_statistics: ClassVar[bool] = True

    def __init__(
        self,
        config: GeneratorTraining,
        student: nn.Module,
        zoo: Ensemble,
        audience: Ensemble,
        draw: tuple[int, int] | None = None,
        seed: int = 0,
        sources: Sources | None = None,
    ):
        super().__init__()
        self.config = config
        self.draw = draw
        self.seed = seed
        why = "WeightFormer's teachers must share one architecture"
        device = next(student.parameters()).device
        shape, aligned = _decided(config, zoo)
        states = zoo.states(why)
        others = states if audience is zoo else audience.states(why)
        self._frame: State | None = None
        if aligned:
            self._frame = make_frame(zoo.info, states, config.frame)
            states = to_frame(zoo.info, self._frame, states)
            same = audience is zoo
            others = states if same else to_frame(zoo.info, self._frame, others)
        self._zoo = [_on(device, state) for state in states]
        self._student = (student,)  # in a tuple, so that it is no submodule
        self._info = zoo.info
        self.average: Average = zoo.average
        self._hashes = tuple(member.sha256 for member in zoo.members)
        self.spec = derive_token_spec(student, zoo.info.input_shape)
        self.generator = WeightFormer(shape, self.spec)
        self.generator.standardise(self._zoo)
        self._sets = [
            (
                chosen,
                self._read(zoo.subset(chosen), [self._zoo[i] for i in chosen], sources),
            )
            for chosen in self._prepared()
        ]
        told = [r.evidence for _, r in self._sets if r.evidence is not None]
        if told:
            self.generator.standardise_evidence(told)
        self._audience = (
            self._sets[0][1]
            if audience is zoo and self._sets
            else self._read(
                audience,
                self._zoo if audience is zoo else [_on(device, s) for s in others],
                sources,
            )
        )
        self.to(device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divergence from the ensemble and the shift-consistency term."""
        assert batch.teacher_logits is not None
        config = self.config
        chosen, reading = self.reading(batch.step)
        shift = config.shift if config.shift_weight and self.training else 0
        parameters, consistency = self.generator(
            reading.states, shift, config.recompute, reading.base, reading.evidence
        )
        logits = self.student_logits(parameters, batch.inputs)
        target = ensemble_log_probs(batch.teacher_logits[chosen], self.average)
        divergence = kl_divergence(target, logits.log_softmax(-1), config.direction)
        losses = {"divergence": (1 - config.label_weight) * divergence}
        if shift:
            losses["shift"] = config.shift_weight * consistency
        if config.label_weight:
            labels = label_loss(logits, batch.labels)
            losses["label"] = config.label_weight * labels
        return losses

    def heavy(self) -> list[nn.Module]:
        """Return the generator and the student that it writes."""
        return [self.generator, *self._student]

    def reading(self, step: int) -> tuple[list[int], Reading]:
        """Return the members of the zoo that step `step` reads, and what it reads."""
        if not self._sets:
            chosen = self.chosen(step)
            fixed = self.generator.config.reference == "frame"
            base = self._frame if fixed else None
            return chosen, Reading([self._zoo[i] for i in chosen], base)
        random = seeded_generator(self.seed, "set", step)
        number = int(torch.randint(len(self._sets), (1,), generator=random))
        return self._sets[number]

    def chosen(self, step: int) -> list[int]:
        """Return the members of the zoo that draw `step` takes, in order."""
        if self.draw is None:
            return list(range(len(self._zoo)))
        random = seeded_generator(self.seed, "draw", step)
        low, high = self.draw
        count = int(torch.randint(low, high + 1, (1,), generator=random))
        return torch.randperm(len(self._zoo), generator=random)[:count].tolist()

    def _prepared(self) -> list[list[int]]:
        """Return the sets of teachers to prepare, none if that takes no images."""
        shape = self.generator.config
        if not (shape.data_tokens or shape.reference in MERGED):
            return []
        count = 1 if self.draw is None else self.config.pool
        return [self.chosen(number) for number in range(count)]

    def _read(
        self, ensemble: Ensemble, states: list[State], sources: Sources | None
    ) -> Reading:
        return read(self.generator, self._frame, ensemble, states, sources)

    def student_logits(self, parameters: State, inputs: Tensor) -> Tensor:
        """Return the logits of the student with these weights, differentiably.

        Batch-norm layers use the batch's statistics; the running ones are scratch.
        """
        student = self._student[0].train()
        buffers = {name: b.clone() for name, b in student.named_buffers()}
        return functional_call(student, {**parameters, **buffers}, (inputs,))

    def export(self) -> nn.Module:
        """Return the student predicted for the audience."""
        student = copy.deepcopy(self._student[0])
        seen = self._audience
        state = self.predictor().predict(seen.states, seen.base, seen.evidence)
        student.load_state_dict(state)
        return student.eval()

    def predictor(self) -> Predictor:
        """Return the generator as it now stands, ready to be saved or used."""
        info = PredictorInfo(
            config=self.generator.config,
            spec=self.spec,
            architecture=self._info.architecture,
            classes=self._info.classes,
            input_shape=self._info.input_shape,
            normalization=self._info.normalization,
            trained_on=self._hashes,
            training={"method": self.config.model_dump(mode="json")},
        )
        return Predictor(self.generator, info, self._frame)


def _decided(
    config: GeneratorTraining, zoo: Ensemble
) -> tuple[WeightFormerConfig, bool]:
    """Return the generator's shape, its reference decided, and whether to align."""
    shape = config.generator
    kin = True
    if "auto" in (shape.reference, config.align) and len(zoo) > 1:
        kin = kinship(zoo).one_start
    aligned = config.align == "always" or (config.align == "auto" and not kin)
    aligned = aligned or shape.reference in ("aligned_mean", "frame")
    if shape.reference == "auto":
        # A mean that is aligned is below a member, but treats all members alike.
        alike = kin or (aligned and shape.readout == "pooled")
        shape = shape.model_copy(update={"reference": "mean" if alike else "first"})
    return shape, aligned


def _on(device: torch.device, state: State) -> State:
    return {name: tensor.to(device) for name, tensor in state.items()}
