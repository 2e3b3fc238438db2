"""Alignment: a network's permutation symmetries, derived, proved and matched."""

from metaensemble.alignment.activations import match_activations
from metaensemble.alignment.apply import (
    Permutations,
    PermutedState,
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
from metaensemble.alignment.specfile import load_spec, save_spec, spec_for
from metaensemble.alignment.trace import derive_permutations

__all__ = [
    "Axis",
    "Group",
    "Matching",
    "PermutationSpec",
    "Permutations",
    "PermutedState",
    "apply_permutations",
    "compose",
    "derive_permutations",
    "identity",
    "invert",
    "load_spec",
    "match_activations",
    "match_many",
    "match_weights",
    "prove",
    "random_permutations",
    "save_spec",
    "spec_for",
]
