"""One loop for everything that is trained, and what it stands on."""

from metaensemble.engine.batches import TrainingBatches
from metaensemble.engine.checkpoint import Checkpoints, Saving
from metaensemble.engine.evaluate import Evaluation, evaluate, prepare_statistics
from metaensemble.engine.fit import Fitted, fit, steps_of
from metaensemble.engine.log import RunLog
from metaensemble.engine.perturbed import PerturbedBatches

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Fitted",
    "PerturbedBatches",
    "RunLog",
    "Saving",
    "TrainingBatches",
    "evaluate",
    "fit",
    "prepare_statistics",
    "steps_of",
]
