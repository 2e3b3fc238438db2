"""Members of different widths, brought to one of them by optimal transport."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from metaensemble.alignment import derive_permutations, prove
from metaensemble.alignment.plans import Solver
from metaensemble.alignment.transport import (
    Plans,
    Side,
    apply_transport,
    plans_by_activations,
    plans_by_weights,
    refuse_other_depth,
)
from metaensemble.core.errors import InputError
from metaensemble.merging.contract import Bench, Judged, Merged, Merger
from metaensemble.merging.soup import weighted_soup
from metaensemble.teachers import Ensemble, Member
from metaensemble.teachers.member import build_from

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the reference that are tried on validation."""


class OtFusion(Merger):
    """Transport every member to the widths of one of them, then average.

    For independently trained members of one depth, whose widths may differ: the
    channels of a member are paired with those of the reference by optimal transport,
    one with several where there are more of the others. The merged network has the
    reference's architecture. Batch-norm statistics are re-estimated afterwards.

    Its accuracy is that of a start for distillation rather than of a student: see
    ``--method kd --start ot_fusion``.
    """

    summary: ClassVar[str] = "transport members of any width to one, then average"
    paper: ClassVar[str] = "Singh and Jaggi 2020, OT fusion (arXiv 1910.05653)"
    needs: ClassVar[tuple[str, ...]] = (
        "one depth",
        "torch.fx can trace it",
        "images",
        "labels (validation)",
    )

    name: Literal["ot_fusion"] = "ot_fusion"
    """The method's name."""
    reference: Literal["best", "widest", "first"] = "best"
    """The member whose architecture and order of channels the others are brought to:
    best on validation, with the most parameters, or the first."""
    matching: Literal["activations", "weights"] = "activations"
    """What makes channels near: like responses to images, or like incoming weights
    (the paper's)."""
    plan: Literal["whole", "exact", "sinkhorn"] = "whole"
    """whole: every channel of the wider network goes with one of the narrower; exact:
    optimal transport of uniform masses, which may divide channels (the paper's; needs
    POT); sinkhorn: the same with an entropy (needs POT)."""
    regularization: float = Field(default=0.05, gt=0)
    """Weight of sinkhorn's entropy, in units of the mean cost."""
    images: int = Field(default=1000, ge=2)
    """Training images, unlabelled, that channels are compared on."""
    reference_share: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the reference in the average; default: of 1/N and .5, .6, ... .9, the
    one with the smallest KL(ensemble || merged) on validation. The others share the
    rest evenly."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the average of the transported members.

        Raises:
            InputError: one member only, members that differ in more than widths, a
                network that cannot be traced, or no POT for plans that need it.
        """
        if len(members) < 2:
            raise InputError(
                "a fusion needs at least two members, but got one; name more"
            )
        _refuse_other_inputs(members)
        reference = self._reference(members, bench)
        others = [m for m in members.members if m is not reference]
        mine = _side(reference, bench.device)
        sides = [_side(member, bench.device) for member in others]
        for theirs in sides:
            refuse_other_depth(mine, theirs)
        states = [mine.state]
        for member, theirs in zip(others, sides, strict=True):
            plans = self._plans(mine, theirs, reference, member, bench)
            states.append(apply_transport(mine, theirs, plans))

        def average(share: float) -> Merged:
            rest = (1 - share) / len(others)
            weights = [share] + [rest] * len(others)
            note = f"reference {reference.name}, its share {share:.3g}"
            return Merged(weighted_soup(states, weights), reference.info, (note,))

        if self.reference_share is not None:
            return average(self.reference_share)
        shares = sorted({1 / len(members), *SHARES})
        judged: list[tuple[Judged, Merged]] = []
        for share in shares:
            merged = average(share)
            judged.append((bench.judge(merged), merged))
            bench.say(
                f"share {share:.2f} of the reference: validation KL "
                f"{judged[-1][0].kl:.4f}"
            )
        return min(judged, key=lambda pair: pair[0].kl)[1]

    def _reference(self, members: Ensemble, bench: Bench) -> Member:
        if self.reference == "first":
            return members.members[0]
        if self.reference == "widest":
            return max(members.members, key=_parameters)

        def figures(member: Member) -> tuple[float, float]:
            measured = bench.judge(Merged(member.state(), member.info)).measured
            return measured.accuracy, -measured.nll

        return max(members.members, key=figures)

    def _plans(
        self, mine: Side, theirs: Side, first: Member, second: Member, bench: Bench
    ) -> Plans:
        solver = Solver(kind=self.plan, regularization=self.regularization)
        if self.matching == "weights":
            return plans_by_weights(mine, theirs, solver)
        batches = zip(
            bench.batches(first.info.normalization, self.images),
            bench.batches(second.info.normalization, self.images),
            strict=True,
        )
        return plans_by_activations(mine, theirs, solver, batches)


def _side(member: Member, device: torch.device) -> Side:
    """Return a member with its groups of channels, derived and proved."""
    network = build_from(member.info)
    shape = member.info.input_shape
    spec = derive_permutations(network, shape)
    prove(network, spec, shape)
    return Side(network.to(device), spec, member.state())


def _parameters(member: Member) -> int:
    return sum(p.numel() for p in build_from(member.info).parameters())


def _refuse_other_inputs(members: Ensemble) -> None:
    first = members.members[0]
    for member in members.members[1:]:
        if member.info.normalization != first.info.normalization:
            raise InputError(
                "members to be fused must share one input normalisation, but "
                f"{member.path} and {first.path} differ in theirs; choose --method kd"
            )
    members.refuse_matched("members to be fused must share one input normalisation")
