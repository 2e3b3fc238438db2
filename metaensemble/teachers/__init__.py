"""Members, ensembles of them, and their outputs, computed once and cached."""

from metaensemble.teachers.ensemble import (
    Average,
    Ensemble,
    ensemble_log_probs,
    load_ensemble,
)
from metaensemble.teachers.kinship import Kinship, kinship
from metaensemble.teachers.live import LiveTeacher, LiveTeachers
from metaensemble.teachers.member import (
    Member,
    MemberInfo,
    load_member,
    save_member,
)
from metaensemble.teachers.outputs import OutputCache
from metaensemble.teachers.selection import (
    Selection,
    ensemble_nll,
    greedy_selection,
    simplex_weights,
)

__all__ = [
    "Average",
    "Ensemble",
    "Kinship",
    "LiveTeacher",
    "LiveTeachers",
    "Member",
    "MemberInfo",
    "OutputCache",
    "Selection",
    "ensemble_log_probs",
    "ensemble_nll",
    "greedy_selection",
    "kinship",
    "load_ensemble",
    "load_member",
    "save_member",
    "simplex_weights",
]
