"""SRM: start a student from sparse codes of its teachers' features, then distil.

Written from the description in the paper; its published program has no licence.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metaensemble.methods.contract import (
    Batch,
    Learner,
    Stage,
    StudentLearner,
    Task,
)
from metaensemble.methods.dictionary import (
    Dictionary,
    image_labels,
    num_codewords,
    num_kept,
    pixel_labels,
    sparse,
)
from metaensemble.methods.distillation import Distillation, tempered_kl
from metaensemble.methods.divergence import label_loss
from metaensemble.methods.features import matched_taps, pooled
from metaensemble.models.taps import Tap, tapped
from metaensemble.teachers import Ensemble, LiveTeachers

Match = tuple[Tap, Tap]
"""A map of the student and the teacher's map that belongs to it."""


class Srm(Distillation):
    """Tran, Gabbouj, Iosifidis 2021 (arXiv 2103.17012), in its three stages.

    1. Dictionaries of every teacher's maps, by reconstruction (`DictionaryLearner`).
    2. The student learns which codewords its teachers' pixels and images have, without
       any class label (`InitialisationLearner`).
    3. loss = (1 - a) CE(labels, student) + a T^2 KL(ensemble || student).

    With several teachers (ours) each has dictionaries of its own, and the losses of
    stages 1 and 2 are averaged by the members' weights. Maps of different sizes are
    averaged to the smaller one's, which the report says.
    """

    summary: ClassVar[str] = "start from sparse codes of the teachers' maps, then kd"
    paper: ClassVar[str] = "Tran, Gabbouj, Iosifidis 2021, SRM (arXiv 2103.17012)"
    needs: ClassVar[tuple[str, ...]] = ("images", "labels", "features")
    cost: ClassVar[str] = "three trainings; all teachers run in each step of two"

    name: Literal["srm"] = "srm"
    """The method's name."""
    temperature: float = Field(default=4.0, gt=0)
    """T of the last stage: both distributions are softened by it."""
    alpha: float = Field(default=0.75, ge=0, le=1)
    """a: the last stage's weight of distillation; 1 - a is that of the labels, where
    images have any."""
    dictionary_epochs: float = Field(default=10.0, gt=0)
    """Passes over the images for the dictionaries."""
    dictionary_learning_rate: float = Field(default=0.1, gt=0)
    """Peak rate of the dictionaries (adamw, no weight decay); the paper's is 0.001, for
    far more steps."""
    init_epochs: float = Field(default=10.0, gt=0)
    """Passes over the images for the student's initialisation."""
    init_learning_rate: float = Field(default=3e-4, gt=0)
    """Peak rate of the initialisation (adamw, weight decay 1e-4); the paper's is
    0.001."""
    init_labels: Literal["pixel", "image", "both"] = "both"
    """What the initialisation learns: each pixel's codeword, each image's mean code, or
    both."""
    codewords: float = Field(default=2.0, gt=0)
    """m: codewords of a dictionary per channel of its maps."""
    kept: float = Field(default=0.02, gt=0, le=1)
    """lambda: part of the codewords that a pixel keeps, one at least."""
    student_layers: tuple[str, ...] = ()
    """The student's layers to match, such as layer2 or relu#3 (third call); default:
    the last value at each resolution."""
    teacher_layers: tuple[str, ...] = ()
    """Those of every teacher, as many and in the same order; default as for the
    student, paired by resolution."""

    def stages(
        self, student: nn.Module, teachers: Ensemble, task: Task
    ) -> Iterator[Stage]:
        """Yield dictionaries, initialisation and distillation."""
        device = next(student.parameters()).device
        live = LiveTeachers(teachers, device)
        matches = [
            list(
                zip(
                    *matched_taps(
                        student, teacher, task, self.student_layers, self.teacher_layers
                    ),
                    strict=True,
                )
            )
            for teacher in live
        ]
        source = TeacherMaps(live, teachers.shares, matches)
        dictionaries = DictionaryLearner(self, student, source).to(device)
        yield Stage(
            "srm-dictionaries",
            self.preparation(
                self.dictionary_epochs, self.dictionary_learning_rate, 0.0
            ),
            dictionaries,
            notes=source.notes(),
        )
        initialisation = InitialisationLearner(self, student, source, dictionaries)
        yield Stage(
            "srm-initialisation",
            self.preparation(self.init_epochs, self.init_learning_rate, 1e-4),
            initialisation.to(device),
        )
        del live, source, dictionaries, initialisation  # frees the teachers' networks
        yield Stage(self.name_, self, DistillationLearner(self, student, teachers))

    def preparation(
        self, epochs: float, rate: float, weight_decay: float
    ) -> "Preparation":
        """Return the settings of a stage before the last."""
        fields = {name: getattr(self, name) for name in Distillation.model_fields}
        return Preparation(
            **fields
            | {
                "epochs": epochs,
                "optimizer": "adamw",
                "learning_rate": rate,
                "weight_decay": weight_decay,
                "views": 0,
                "perturbation": "none",
                "selection": "last",
            }
        )


class Preparation(Distillation):
    """Settings of a stage in which the teachers run along."""

    live: ClassVar[bool] = True


class TeacherMaps:
    """The maps that matter of all teachers, at the sizes at which they are coded."""

    def __init__(
        self,
        teachers: LiveTeachers,
        shares: Sequence[float],
        matches: Sequence[Sequence[Match]],
    ):
        self.teachers = teachers
        self.shares = shares
        """Weights of the teachers."""
        self.matches = matches
        """Per teacher, per stage."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[list[Tensor]]:
        """Return per teacher and stage a map (batch, channels, height, width)."""
        assert batch.pixels is not None
        found: list[list[Tensor]] = []
        for teacher, matches in zip(self.teachers, self.matches, strict=True):
            _, maps = teacher(batch.pixels, [theirs for _, theirs in matches])
            found.append(
                [
                    pooled(value, *size_of(match))
                    for value, match in zip(maps, matches, strict=True)
                ]
            )
        return found

    def notes(self) -> tuple[str, ...]:
        """Return a sentence per teacher that has maps of other sizes, if any."""
        notes: list[str] = []
        for teacher, matches in zip(self.teachers, self.matches, strict=True):
            unequal = [
                f"{theirs} ({theirs.height} x {theirs.width}) and the student's {own} "
                f"({own.height} x {own.width})"
                for own, theirs in matches
                if (own.height, own.width) != (theirs.height, theirs.width)
            ]
            if unequal:
                notes.append(
                    f"srm averaged maps of different sizes to the smaller one's: "
                    f"{teacher.member.path.name}'s {', '.join(unequal)}"
                )
        return tuple(notes)


def size_of(match: Match) -> tuple[int, int]:
    """Return the height and width at which a pair of maps is compared."""
    own, theirs = match
    return min(own.height, theirs.height), min(own.width, theirs.width)


class DictionaryLearner(Learner):
    """Stage 1: one dictionary per teacher and map, to reconstruct its pixels.

    loss = sum_i share_i sum_l MSE(Phi s, x), s sparse; teachers stay as they are.
    """

    preparation: ClassVar[bool] = True

    def __init__(self, method: Srm, student: nn.Module, source: TeacherMaps):
        super().__init__()
        self.source = source
        self._student = (student,)  # in a tuple: neither trained nor saved
        self.kept = [
            [
                num_kept(theirs.channels, method.codewords, method.kept)
                for _, theirs in matches
            ]
            for matches in source.matches
        ]
        self.dictionaries = nn.ModuleList(
            nn.ModuleList(
                Dictionary(
                    theirs.channels, num_codewords(theirs.channels, method.codewords)
                )
                for _, theirs in matches
            )
            for matches in source.matches
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the error of the reconstruction."""
        terms = [
            share * F.mse_loss(dictionary.decode(sparse(code, kept)), value)
            for share, dictionary, code, kept, value in self.codes(batch)
        ]
        return {"reconstruction": torch.stack(terms).sum()}

    def codes(
        self, batch: Batch
    ) -> Iterator[tuple[float, Dictionary, Tensor, int, Tensor]]:
        """Yield share, dictionary, dense code, k and map of each teacher and stage."""
        for share, dictionaries, kept, maps in zip(
            self.source.shares,
            self.dictionaries,
            self.kept,
            self.source(batch),
            strict=True,
        ):
            assert isinstance(dictionaries, nn.ModuleList)
            for dictionary, k, value in zip(dictionaries, kept, maps, strict=True):
                assert isinstance(dictionary, Dictionary)
                yield share, dictionary, dictionary.code(value), k, value

    def export(self) -> nn.Module:
        """Return the student, which this stage does not touch."""
        return self._student[0]


class InitialisationLearner(StudentLearner):
    """Stage 2: the student is to know the codewords of its teachers' maps.

    Per teacher and map the student has a dictionary of its own, p = sigmoid(Phi_s^T f +
    c_s), which is dropped afterwards. The pixels' loss is the cross-entropy of softmax
    (p) with the largest codeword, the images' that of mean p with the mean sparse code,
    summed over maps and averaged over teachers. As in the paper p itself serves as
    logits: values in (0, 1), so that with K codewords the pixels' loss cannot go below
    ln(1 + (K - 1) / e) per map.
    """

    preparation: ClassVar[bool] = True

    def __init__(
        self,
        method: Srm,
        student: nn.Module,
        source: TeacherMaps,
        dictionaries: DictionaryLearner,
    ):
        super().__init__(student)
        self.labels = method.init_labels
        self._taught = (dictionaries,)  # in a tuple: neither trained nor saved
        self.matches = [match for matches in source.matches for match in matches]
        self.taps = list(dict.fromkeys(own for own, _ in self.matches))
        self.adapters = nn.ModuleList(
            Dictionary(own.channels, num_codewords(theirs.channels, method.codewords))
            for own, theirs in self.matches
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the pixels' loss, the images' or both."""
        with torch.no_grad():
            taught = list(self._taught[0].codes(batch))
        _, maps = tapped(self.student, self.taps, batch.inputs)
        of_tap = dict(zip(self.taps, maps, strict=True))
        pixels: list[Tensor] = []
        images: list[Tensor] = []
        for match, adapter, (share, _, code, kept, _) in zip(
            self.matches, self.adapters, taught, strict=True
        ):
            assert isinstance(adapter, Dictionary)
            predicted = adapter.code(pooled(of_tap[match[0]], *size_of(match)))
            pixels.append(share * F.cross_entropy(predicted, pixel_labels(code)))
            images.append(
                share
                * F.binary_cross_entropy(
                    predicted.mean((2, 3)), image_labels(code, kept)
                )
            )
        losses: dict[str, Tensor] = {}
        if self.labels != "image":
            losses["pixel"] = torch.stack(pixels).sum()
        if self.labels != "pixel":
            losses["image"] = torch.stack(images).sum()
        return losses


class DistillationLearner(StudentLearner):
    """Stage 3: (1 - a) CE + a T^2 KL(ensemble || student), on the cached logits."""

    def __init__(self, method: Srm, student: nn.Module, teachers: Ensemble):
        super().__init__(student)
        self.method = method
        self.teachers = teachers

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distillation term and the labels', those with weight."""
        assert batch.teacher_logits is not None
        temperature, alpha = self.method.temperature, self.method.alpha
        logits = self.student(batch.inputs)
        losses: dict[str, Tensor] = {}
        if alpha:
            target = self.teachers.log_probs(batch.teacher_logits, temperature)
            distance = tempered_kl(target, logits, temperature)
            losses["distillation"] = alpha * distance
        if alpha < 1:
            losses["label"] = (1 - alpha) * label_loss(logits, batch.labels)
        return losses
