"""Trained methods, one file each; the contract is in `contract`."""

from metaensemble.methods.at import AT
from metaensemble.methods.auto import Auto
from metaensemble.methods.blockwise import Blockwise
from metaensemble.methods.cc import CC
from metaensemble.methods.contract import (
    Batch,
    Learner,
    Stage,
    StudentLearner,
    Task,
    TrainedMethod,
    steps_of,
)
from metaensemble.methods.crd import CRD
from metaensemble.methods.distillation import Distillation, LogitDistillation
from metaensemble.methods.dkd import DKD
from metaensemble.methods.ensemble_distribution import EnsembleDistribution
from metaensemble.methods.fitnet import FitNet
from metaensemble.methods.ft import FT
from metaensemble.methods.irg import IRG
from metaensemble.methods.kd import KD
from metaensemble.methods.latent_ensemble import LatentEnsemble
from metaensemble.methods.meal import Meal
from metaensemble.methods.meal_v2 import MealV2
from metaensemble.methods.mutual import Mutual
from metaensemble.methods.one import One
from metaensemble.methods.online import (
    Grown,
    OnlineLearner,
    OnlineMethod,
    other_networks,
)
from metaensemble.methods.reading import Reading, Sources, reading_for
from metaensemble.methods.rkd import RKD
from metaensemble.methods.self_distillation import SelfDistillation
from metaensemble.methods.sp import SP
from metaensemble.methods.srm import Srm
from metaensemble.methods.student_ensemble import StudentEnsemble
from metaensemble.methods.supervised import Supervised
from metaensemble.methods.vid import VID
from metaensemble.methods.weightformer import (
    GeneratorTraining,
    Refinement,
    WeightFormerLearner,
    WeightFormerMethod,
)

__all__ = [
    "AT",
    "CC",
    "CRD",
    "DKD",
    "FT",
    "IRG",
    "KD",
    "RKD",
    "SP",
    "VID",
    "Auto",
    "Batch",
    "Blockwise",
    "Distillation",
    "EnsembleDistribution",
    "FitNet",
    "GeneratorTraining",
    "Grown",
    "LatentEnsemble",
    "Learner",
    "LogitDistillation",
    "Meal",
    "MealV2",
    "Mutual",
    "One",
    "OnlineLearner",
    "OnlineMethod",
    "Reading",
    "Refinement",
    "SelfDistillation",
    "Sources",
    "Srm",
    "Stage",
    "StudentEnsemble",
    "StudentLearner",
    "Supervised",
    "Task",
    "TrainedMethod",
    "WeightFormerLearner",
    "WeightFormerMethod",
    "other_networks",
    "reading_for",
    "steps_of",
]
