"""MEAL: match one teacher per step, drawn at random, stage by stage, adversarially.

Written from the description in the paper; its published programs have no licence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods.contract import Batch, Stage, StudentLearner, Task
from metaensemble.methods.discriminator import Adversary, Discriminator
from metaensemble.methods.distillation import Distillation
from metaensemble.methods.divergence import kl_divergence, label_loss
from metaensemble.methods.features import matched_taps
from metaensemble.models.taps import Tap, named, stages, tapped
from metaensemble.teachers import Ensemble, LiveTeachers

Distance = Literal["ce", "l1", "l2"]
"""ce: KL between softmaxes, which is their cross-entropy less the teacher's entropy;
l1, l2: mean absolute or squared difference."""
Pooling = Literal["mean", "max"]
"""How maps become vectors: by means or by maxima."""

T = TypeVar("T")


class Meal(Distillation):
    """Shen, He, Xue 2019 (arXiv 1812.02425).

    Each step draws one teacher, uniformly (in proportion to the members' weights where
    these are given), and minimises

    sum_l gamma_l d(student_l, teacher_l) + eta sum_l BCE(discriminator_l)

    over the stages l of the two networks, the last of which are their logits. Maps
    become vectors of one length by `aligned`, whatever the architectures.
    """

    summary: ClassVar[str] = "match one random teacher per step, adversarially"
    paper: ClassVar[str] = "Shen, He, Xue 2019, MEAL (arXiv 1812.02425)"
    needs: ClassVar[tuple[str, ...]] = ("images", "features")
    cost: ClassVar[str] = "one training; one teacher runs in each step"
    live: ClassVar[bool] = True

    name: Literal["meal"] = "meal"
    """The method's name."""
    views: int = Field(default=0, ge=0)
    """Different augmented copies of each image; 0 augments anew in every epoch."""
    distance: Distance = "ce"
    """d. ce: KL between the softmaxes of the two vectors; l1, l2: mean absolute or
    squared difference of the vectors."""
    gammas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.001, 0.01, 0.05, 0.1, 1.0), min_length=1
    )
    """Weights of the stages' distances, the last that of the logits; of fewer stages
    the last ones count, of more the first is repeated. 0 leaves a stage out: 0 1 are
    the logits alone, as in the paper's ensemble of five teachers."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Peak rate; linear warm-up, then cosine to zero."""
    eta: float = Field(default=0.1, ge=0)
    """Weight of the discriminators' loss; the paper's is 1."""
    adversary: Adversary = "reversal"
    """reversal: the student plays against the discriminators (the paper's game);
    cooperative: it helps them (what the published program does by default); none."""
    discriminator_rate: float = Field(default=0.1, gt=0)
    """Factor on the gradients of the discriminators. With sgd, eta times it is their
    learning rate relative to the student's: 0.01, as in the paper."""
    out_dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(5000, 1000, 500, 200), min_length=1
    )
    """Lengths of the stages' vectors before the logits; as for gammas, the last ones
    count. Never more than the positions (for vectors, channels) of the smaller map."""
    pooling: Pooling = "mean"
    """mean or max, over windows of positions and over channels."""
    label_weight: float = Field(default=0.0, ge=0)
    """Weight of the labels' cross-entropy (the paper has none)."""
    student_layers: tuple[str, ...] = ()
    """The student's layers to match, such as layer2 or relu#3 (third call); default:
    the last value at each resolution."""
    teacher_layers: tuple[str, ...] = ()
    """Those of every teacher, as many and in the same order; default as for the
    student, paired by resolution."""

    def teachers_run(self, members: int) -> int:
        """Return 1: each step runs the teacher that it drew."""
        return 1

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield the one training."""
        yield Stage(self.name_, self, MealLearner(self, student, teachers, task))


@dataclass(frozen=True)
class Place:
    """A place where the student is compared with teachers, before the logits."""

    student: Tap
    """The student's map."""
    teachers: dict[int, Tap]
    """The maps of the teachers (by number) that have one that belongs to it."""
    length: int
    """Of the vectors that the maps become."""
    gamma: float
    """Weight of the distance."""


class MealLearner(StudentLearner):
    """Trains the student and, unless there are none, the discriminators."""

    def __init__(
        self, method: Meal, student: nn.Module, teachers: Ensemble, task: Task
    ):
        """Find where to compare the networks.

        Raises:
            InputError: all gammas are 0, or the layers to match are not there.
        """
        super().__init__(student)
        self.method = method
        device = next(student.parameters()).device
        self.teachers = LiveTeachers(teachers, device)
        self.shares = torch.tensor(teachers.shares)
        *inner, self.gamma = method.gammas
        if not any(method.gammas):
            raise InputError(
                "one of --gammas must be above 0, but all are 0; leave out --gammas, "
                "or choose --gammas 0 1 for the logits alone"
            )
        self.places: tuple[Place, ...] = ()
        if any(inner):
            self.places = _places(method, student, self.teachers, task)
        lengths = [place.length for place in self.places]
        if self.gamma:
            lengths.append(len(teachers.info.classes))
        playing = method.adversary != "none" and method.eta > 0
        self.discriminators = nn.ModuleList(
            Discriminator(length, 2, method.discriminator_rate)
            for length in (lengths if playing else [])
        ).to(device)

    def draw(self) -> int:
        """Return the number of a teacher, drawn by torch's global generator."""
        return int(torch.multinomial(self.shares, 1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distances to the teacher that was drawn, and the games' losses."""
        assert batch.pixels is not None
        method, drawn = self.method, self.draw()
        present = [p for p, place in enumerate(self.places) if drawn in place.teachers]
        places = [self.places[p] for p in present]
        with torch.no_grad():
            target, taught = self.teachers[drawn](
                batch.pixels, [place.teachers[drawn] for place in places]
            )
        logits, learned = tapped(
            self.student, [place.student for place in places], batch.inputs
        )
        pairs = [
            (
                aligned(own, place.length, method.pooling),
                aligned(theirs, place.length, method.pooling),
            )
            for place, own, theirs in zip(places, learned, taught, strict=True)
        ]
        gammas = [place.gamma for place in places]
        if self.gamma:
            pairs.append((logits, target))
            gammas.append(self.gamma)
            present.append(len(self.places))
        terms = [
            gamma * distance_between(*pair, method.distance)
            for gamma, pair in zip(gammas, pairs, strict=True)
        ]
        losses = {"similarity": torch.stack(terms).sum()}
        if len(self.discriminators):
            games: list[Tensor] = []
            for p, (own, theirs) in zip(present, pairs, strict=True):
                judge = self.discriminators[p]
                assert isinstance(judge, Discriminator)
                games.append(judge.loss(own, theirs, method.adversary))
            losses["discriminator"] = method.eta * torch.stack(games).sum()
        if method.label_weight:
            losses["label"] = method.label_weight * label_loss(logits, batch.labels)
        return losses


def aligned(
    value: Float[Tensor, "batch channels height width"],
    length: int,
    pooling: Pooling = "mean",
) -> Float[Tensor, "batch length"]:
    """Return a map as a vector of a length that does not depend on the map's size.

    The positions in one row, pooled to `length` of them; then one value over the
    channels. A map of one position (the hidden layer of a perceptron) has only its
    channels to tell: they take the place of the positions (ours).
    """
    rows = value.flatten(2)
    if rows.shape[2] == 1:
        rows = rows.transpose(1, 2)
    # the mean (maximum) over channels is taken first, which is the same and cheaper
    if pooling == "max":
        return F.adaptive_max_pool1d(rows.amax(1), length)
    return F.adaptive_avg_pool1d(rows.mean(1), length)


def distance_between(
    student: Float[Tensor, "batch length"],
    teacher: Float[Tensor, "batch length"],
    distance: Distance,
) -> Float[Tensor, ""]:
    """Return d, a scalar; 0 with gradient 0 where the two are equal."""
    if distance == "l1":
        return F.l1_loss(student, teacher)
    if distance == "l2":
        return F.mse_loss(student, teacher)
    return kl_divergence(teacher.log_softmax(-1), student.log_softmax(-1))


def last_of(values: Sequence[T], count: int) -> list[T]:
    """Return the last `count` values; the first is repeated if there are fewer."""
    return [values[0]] * (count - len(values)) + list(values)[-count:]


def _places(
    method: Meal, student: nn.Module, teachers: LiveTeachers, task: Task
) -> tuple[Place, ...]:
    """Return the places with weight, in the student's order."""
    known = named(student, task.input_shape, method.student_layers, "the student's")
    known = known or stages(student, task.input_shape)
    partners: dict[Tap, dict[int, Tap]] = {tap: {} for tap in known}
    for number, teacher in enumerate(teachers):
        matches = matched_taps(
            student, teacher, task, method.student_layers, method.teacher_layers
        )
        for own, theirs in zip(*matches, strict=True):
            partners[own][number] = theirs
    found = [(own, theirs) for own, theirs in partners.items() if theirs]
    gammas = last_of(method.gammas, len(found) + 1)[:-1]
    longest = last_of(method.out_dims, len(found))
    return tuple(
        Place(own, theirs, min(most, *map(_size, (own, *theirs.values()))), gamma)
        for (own, theirs), gamma, most in zip(found, gammas, longest, strict=True)
        if gamma
    )


def _size(tap: Tap) -> int:
    """Return the positions of a map, or the channels where there is one position."""
    positions = tap.height * tap.width
    return positions if positions > 1 else tap.channels
