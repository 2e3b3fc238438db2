"""A method of your own, beside those that are there: python examples/own_method.py."""

import tempfile
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

import metaensemble as me
from metaensemble.cli import main as metaensemble
from metaensemble.methods import Batch, Distillation, StudentLearner


class LogitMatching(Distillation):
    """Ba and Caruana 2014 with an ensemble: regress onto the mean of the logits."""

    summary: ClassVar[str] = "regress the student's logits onto the teachers' mean"
    paper: ClassVar[str] = "Ba, Caruana 2014 (arXiv 1312.6184), equation 1"
    cost: ClassVar[str] = "one training"

    name: Literal["logit_matching"] = "logit_matching"
    scale: float = Field(default=0.1, gt=0)
    """Weight of the squared error."""

    def learner(self, student: nn.Module, teachers: object) -> StudentLearner:
        """Return what is trained."""
        return LogitLearner(student, self.scale)


class LogitLearner(StudentLearner):
    """The student, and the loss on its logits."""

    def __init__(self, student: nn.Module, scale: float):
        super().__init__(student)
        self.scale = scale

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared difference from the teachers' mean logits."""
        assert batch.teacher_logits is not None  # (members, batch, classes)
        error = self.student(batch.inputs) - batch.teacher_logits.mean(0)
        return {"regression": self.scale * error.square().mean()}


def main() -> None:
    """Teach four members and compare the method with plain distillation."""
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder) / "zoo"
        flags = "teach --data digits --limit-train 300 --architecture convnet,width=8"
        metaensemble([*flags.split(), "--epochs", "60", "--quiet", "--out", str(zoo)])
        data = me.load_data("digits", limit_train=300)
        ensemble = me.load_ensemble([zoo], data=data)
        for method in (LogitMatching(epochs=60), me.methods.KD(epochs=60)):
            print(me.fuse(ensemble, data, method).report.verdict)


if __name__ == "__main__":
    main()
