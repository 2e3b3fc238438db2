"""Trained methods, one file each; the contract is in `contract`."""

from metaensemble.methods.contract import Batch, Learner, TrainedMethod
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
    "GeneratorTraining",
    "Learner",
    "Reading",
    "Refinement",
    "Sources",
    "Supervised",
    "TrainedMethod",
    "WeightFormerLearner",
    "WeightFormerMethod",
    "reading_for",
]
