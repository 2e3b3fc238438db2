"""Trained methods, one file each; the contract is in `contract`."""

from metaensemble.methods.contract import (
    Batch,
    Learner,
    Stage,
    Task,
    TrainedMethod,
    steps_of,
)
from metaensemble.methods.distillation import Distillation, LogitDistillation
from metaensemble.methods.kd import KD
from metaensemble.methods.reading import Reading, Sources, reading_for
from metaensemble.methods.supervised import Supervised
from metaensemble.methods.weightformer import (
    GeneratorTraining,
    Refinement,
    WeightFormerLearner,
    WeightFormerMethod,
)

__all__ = [
    "KD",
    "Batch",
    "Distillation",
    "GeneratorTraining",
    "Learner",
    "LogitDistillation",
    "Reading",
    "Refinement",
    "Sources",
    "Stage",
    "Supervised",
    "Task",
    "TrainedMethod",
    "WeightFormerLearner",
    "WeightFormerMethod",
    "reading_for",
    "steps_of",
]
