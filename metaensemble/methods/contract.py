"""The contract of everything that is trained.

A method is a frozen config. ``method.learner(student, teachers)`` gives a module whose
``forward(batch)`` returns the named parts of the loss and whose ``export()`` returns
the one deployable network. Whatever a method needs during training only (branches,
discriminators, a generator of weights) lives inside its learner. The engine knows
nothing else. A method that trains in several stages yields them one after another from
``method.stages(...)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.method import Method
from metaensemble.models import InputShape
from metaensemble.teachers import Ensemble

Perturbation = Literal["none", "tdiv_sdiv", "ods", "confods"]
"""How images are moved before a step."""


@dataclass(frozen=True)
class Batch:
    """What a learner sees in one step; all tensors are on the learner's device."""

    step: int
    """Number of the step, from 0; the randomness of a step is a function of it."""
    inputs: Float[Tensor, "batch channels height width"]
    """Augmented images, normalised for the student."""
    labels: Int[Tensor, " batch"]
    """Classes; -1 where the label is unknown."""
    teacher_logits: Float[Tensor, "members batch classes"] | None = None
    """The teachers' cached logits for these very images; None without teachers, and
    for methods that run them themselves (`TrainedMethod.live`)."""
    pixels: Shaped[Tensor, "batch channels height width"] | None = None
    """The augmented images before normalisation: bytes, or floats in [0, 1] if they
    were perturbed. What live teachers see."""
    indices: Int[Tensor, " batch"] | None = None
    """Places of the images in the distillation images, always the same for an image."""
    clean: Float[Tensor, "batch channels height width"] | None = None
    """`inputs` as they were before a perturbation; None without one."""


class Learner(nn.Module, ABC):
    """A module under training: its parameters are what the optimizer updates.

    Everything that training changes must be in its state dict, since checkpoints hold
    nothing else of it.
    """

    stale_statistics: ClassVar[bool] = False
    """Whether batch-norm statistics must be re-estimated after `export`."""
    preparation: ClassVar[bool] = False
    """Whether this stage trains no student yet, so that `export` has nothing that
    validation could measure."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, scalars; their sum is minimised."""

    @abstractmethod
    def export(self) -> nn.Module:
        """Return the deployable network as it now stands, detached from training."""

    def heavy(self) -> list[nn.Module]:
        """Return what costs the time, to be run in bfloat16 or compiled by choice.

        The default is every direct submodule with parameters.
        """
        return [
            child for child in self.children() if any(True for _ in child.parameters())
        ]

    def predictions(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Return the logits of every network that this learner trains as a student.

        One for most; latent members and branches are several. For perturbations, which
        look for images on which they differ.
        """
        return self.export()(inputs)[None]


@dataclass(frozen=True)
class Task:
    """What is known before the first batch."""

    input_shape: InputShape
    """Of the student: channels, height, width."""
    labels: Int[Tensor, " images"]
    """Of all distillation images, by `Batch.indices`; -1 where unknown."""
    architecture: str = ""
    """Of the student; empty where it has no text."""
    num_classes: int = 0
    """Of the data; 0 where nobody asks."""

    def steps(self, method: "TrainedMethod") -> int:
        """Return how many steps a training with these settings has."""
        return steps_of(method, max(1, len(self.labels) // method.batch_size))


@dataclass(frozen=True)
class Stage:
    """One training of a method that has several."""

    name: str
    """Names it in log, progress and checkpoint."""
    settings: "TrainedMethod"
    """Epochs, rates, optimizer, selection."""
    learner: Learner
    """What to fit."""
    architecture: str | None = None
    """Of what the learner exports; None for the student's."""
    notes: tuple[str, ...] = ()
    """What the report is to say of this training: sentences."""


class TrainedMethod(Method):
    """A method that trains; the fields that all of them have."""

    fewest_members: ClassVar[int] = 1
    live: ClassVar[bool] = False
    """Whether its learner runs the teachers itself, on `Batch.pixels`, because it needs
    more of them than their logits; no cached logits come with its batches then."""

    divisible: ClassVar[bool] = True
    """Whether a batch may be divided, among processes or one part after another. Not
    where training keeps a memory of what it saw that is not in the gradient."""

    epochs: float = Field(default=20, gt=0)
    """Passes over the distillation images."""
    batch_size: int = Field(default=128, ge=1)
    """Images per step."""
    accumulate: int = Field(default=1, ge=1)
    """Into how many parts a batch is divided whose gradients are added up, for networks
    that do not fit; batch norm and losses between images then see a part each."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the networks under training compute in; losses and weights are float32."""
    compile: bool = False
    """Compile the networks under training (torch.compile): slow first, faster after."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov momentum 0.9."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """On tensors of two or more dimensions."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps with a linearly rising rate."""
    clip: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient."""
    views: int = Field(default=8, ge=0)
    """Different augmented copies of each image, re-used in turn, so that the teachers
    see each once; 0 augments anew in every epoch."""
    perturbation: Perturbation = "none"
    """Images moved, before each step, to where networks differ (Nam et al. 2021, 2022):
    tdiv_sdiv raises the teachers' diversity and lowers the student's; ods draws a
    random direction of a teacher's output, confods scales it by its confidence.
    Teachers then run anew in each step."""
    selection: Literal["last", "best"] = "best"
    """Which state is kept: the last, or the best by KL to the ensemble (by NLL where
    there is none) on the validation split."""

    @property
    def augments(self) -> bool:
        """Return whether images are augmented as the data says."""
        return True

    def teachers_run(self, members: int) -> int:
        """Return how many of the members each step runs itself."""
        return members if self.live else 0

    def learner(self, student: nn.Module, teachers: Ensemble | None) -> Learner:
        """Return the module to train.

        Args:
            student: the network to be trained or written; on the device to be used.
            teachers: whose logits the batches bring; None for supervised training.
        """
        raise NotImplementedError

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the trainings, each when the one before it is done.

        The last one's learner exports the student.

        Args:
            student: the network to be trained; on the device to be used.
            teachers: whose knowledge it is to get.
            task: what is known of the images.
        """
        del task  # most methods learn all they need from their batches
        yield Stage(self.name_, self, self.learner(student, teachers))


def steps_of(method: TrainedMethod, steps_per_epoch: int) -> int:
    """Return the number of steps of a training."""
    return max(1, round(method.epochs * steps_per_epoch))


class StudentLearner(Learner):
    """A learner that trains the student itself, by a loss on its logits."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def export(self) -> nn.Module:
        """Return the student."""
        return self.student
