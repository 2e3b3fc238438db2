"""Alignment: a network's permutation symmetries, derived, proved and matched."""

from metaensemble.alignment.activations import match_activations
from metaensemble.alignment.apply import (
    Permutations,
    apply_permutations,
    compose,
    identity,
    invert,
    random_permutations,
)
from metaensemble.alignment.groups import Axis, Group, PermutationSpec
from metaensemble.alignment.many import match_many
from metaensemble.alignment.matching import Matching, match_weights
from metaensemble.alignment.proof import prove
from metaensemble.alignment.trace import derive_permutations

__all__ = [
    "Axis",
    "Group",
    "Matching",
    "PermutationSpec",
    "Permutations",
    "apply_permutations",
    "compose",
    "derive_permutations",
    "identity",
    "invert",
    "match_activations",
    "match_many",
    "match_weights",
    "prove",
    "random_permutations",
]
