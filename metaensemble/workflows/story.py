"""The whole story on the embedded digits: teach a zoo, fuse members it never held.

The digits are made hard on purpose: 300 labelled training images, of which each member
sees a part, and 500 without labels. So the ensemble has clear headroom over its
members, and noise over seeds does not drown it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from metaensemble.core.config import Config
from metaensemble.data import ImageData, load_data
from metaensemble.merging import AlignedSoup, BestMember, Soup
from metaensemble.methods import KD, Supervised, WeightFormerMethod
from metaensemble.report import Report
from metaensemble.report.predictions import FOLDER, save_predictions
from metaensemble.teachers import Ensemble, Member
from metaensemble.weightformer import save_predictor
from metaensemble.workflows.fuse import fuse_students
from metaensemble.workflows.learning import learn_predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.predicting import predicted_student, tune_student
from metaensemble.workflows.registry import MethodUnion
from metaensemble.workflows.reporting import measure_student, save_student
from metaensemble.workflows.students import Student
from metaensemble.workflows.teach import Knowledge, teach_member, teach_members

Regime = Literal["one-start", "independent"]


class Story(Config):
    """The sizes of the story; each regime has its own way of teaching."""

    regime: Regime = "one-start"
    """one-start: members fine-tuned from common weights; independent: each from its
    own."""
    labels: int = 400
    """Labelled images, of which a quarter is for validation."""
    architecture: str = "convnet,width=8"
    """Of every network."""
    zoo: int = 20
    """Members that the WeightFormer learns from, four of them held out."""
    fused: int = 4
    """Members that are fused; the WeightFormer has never seen them."""
    start: Supervised = Supervised(epochs=15, batch_size=32, learning_rate=0.05)
    """How the common start is trained."""
    kd: KD = KD(epochs=80, batch_size=64)
    """Distillation."""
    weightformer: WeightFormerMethod = WeightFormerMethod(
        epochs=80, tune_epochs=80, tune_learning_rate=0.05
    )
    """The generator, and the tuning of what it predicts: the budget of `kd`."""

    @property
    def teaching(self) -> Supervised:
        """Return how members are trained."""
        rate = 0.2 if self.regime == "one-start" else 0.05
        return Supervised(epochs=60, batch_size=32, learning_rate=rate)

    @property
    def subset(self) -> float:
        """Return the part of the labelled images that each member sees."""
        return 0.3 if self.regime == "one-start" else 0.5

    def load(self, seed: int) -> ImageData:
        """Return the digits, split by the seed."""
        return load_data(
            "digits", limit_train=self.labels, validation_fraction=0.25, seed=seed
        )


def tell(story: Story, session: Session, folder: Path, command: str) -> list[Report]:
    """Teach, fuse by every method, and return a report per method (and stage).

    Args:
        story: the sizes.
        session: its data are `Story.load`'s; its seed makes everything.
        folder: gets the members, the predictor and the students.
        command: the command's name, for the reports.
    """
    _, unseen = teach_zoo(story, session, folder)
    rows = []
    for method in (BestMember(), Soup(), AlignedSoup(), story.kd):
        student = fuse_students(session, unseen, method)[-1]
        rows.append(_report(session, folder, unseen, student, method, command))
    form = story.weightformer
    return rows + tell_weightformer(story, form, session, folder, command)


def tell_weightformer(
    story: Story,
    method: WeightFormerMethod,
    session: Session,
    folder: Path,
    command: str,
) -> list[Report]:
    """Learn a predictor on the zoo, predict for the unseen members, tune; report each.

    Args:
        story: the sizes.
        method: the generator and the tuning.
        session: as for `tell`.
        folder: as for `tell`; members that are already in it are used.
        command: the command's name, for the reports.
    """
    zoo, unseen = teach_zoo(story, session, folder)
    learnt = learn_predictor(
        session, zoo, method, teachers=(story.fused, story.fused), hold_out=4
    )
    save_predictor(folder / "weightformer.safetensors", learnt.predictor)
    predicted = predicted_student(session, unseen, learnt.predictor)
    note = (
        f"the generator was trained once, on {len(zoo)} other members, in "
        f"{learnt.student.train_seconds:.1f} s; predicting took one forward pass"
    )
    predicted = replace(predicted, notes=(note,))
    tuned = tune_student(session, unseen, predicted, method)
    made = [predicted] if tuned is None else [predicted, tuned]
    return [
        _report(session, folder, unseen, student, method, command) for student in made
    ]


def teach_zoo(
    story: Story, session: Session, folder: Path
) -> tuple[Ensemble, Ensemble]:
    """Return the zoo to learn from and the members to fuse."""
    first = session.seed * 1000
    start: Member | None = None
    if story.regime == "one-start":
        start = teach_member(
            session.reseeded(first + 999),
            folder / "start.safetensors",
            architecture=story.architecture,
            method=story.start,
        )

    def taught(name: str, seed: int, members: int) -> Ensemble:
        made = teach_members(
            session.reseeded(seed),
            folder / name,
            architecture=story.architecture,
            members=members,
            method=story.teaching,
            start=start,
            knowledge=Knowledge(subset=story.subset),
        )
        return Ensemble(tuple(made))

    zoo = taught("zoo", first, story.zoo)
    return zoo, taught("unseen", first + 500, story.fused)


def _report(
    session: Session,
    folder: Path,
    ensemble: Ensemble,
    student: Student,
    method: MethodUnion,
    command: str,
) -> Report:
    name = file_of(method.name_, student.stage)
    path = folder / "students" / name
    save_student(path, ensemble, student, method)
    reported = measure_student(
        session, ensemble, student, command=command, method=method, path=path
    )
    save_predictions(folder / FOLDER / name, reported.predictions)
    return reported.report


def file_of(name: str, stage: str | None) -> str:
    """Return the name of a student's file, and of that of its predictions."""
    return f"{name if stage is None else f'{name}-{stage}'}.safetensors"
