"""Layer-wise regression: a student fitted to its members layer by layer."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaensemble.merging.aligning import AligningMerger
from metaensemble.merging.contract import Bench, Merged
from metaensemble.merging.layerwise import fit_layers, refuse_too_few
from metaensemble.merging.soup import weighted_soup
from metaensemble.merging.units import (
    Positions,
    Targets,
    Unit,
    find_units,
    outputs_of,
    traced,
)
from metaensemble.metrics import measure
from metaensemble.models import reestimate_batchnorm
from metaensemble.teachers import Ensemble
from metaensemble.teachers.member import build_from
from metaensemble.teachers.tensors import load_strictly

GRID = (0.4, 0.55, 0.7, 0.85, 1.0)
"""Weights of the reference at the last hidden layer that are tried beside 1/N."""


class RegressionMerge(AligningMerger):
    """Fit every layer, first to last, to the weighted mean of the aligned members.

    Members are aligned to the reference, the best of them on validation. Then each
    layer of the student is fitted in closed form, by ridge regression on unlabelled
    images, from what the student feeds into it to the weighted mean of the members'
    outputs at that layer, and the last one to the ensemble's log-probabilities. Early
    layers follow the reference, late ones the mean: features of several networks that
    are mixed early are hard to use later. No gradient step.
    """

    summary: ClassVar[str] = "fit layer after layer to the aligned members, no gradient"
    paper: ClassVar[str] = "- (after Ainsworth et al. 2022; RegMean, arXiv 2212.09849)"
    needs: ClassVar[tuple[str, ...]] = (
        "one architecture",
        "torch.fx can trace it",
        "images",
    )
    cost: ClassVar[str] = "no training; some forward passes of every member"

    name: Literal["regression_merge"] = "regression_merge"
    """The method's name."""
    images: int = Field(default=5000, ge=2)
    """Unlabelled images on which layers are fitted. They are not augmented: fitted to
    crops, a student was three times as far from the ensemble on whole images
    (benchmarks/LOG.md)."""
    samples: int = Field(default=50_000, ge=2)
    """Positions per layer, over all images, that a fit looks at."""
    ridge: float = Field(default=1e-3, gt=0)
    """Pull towards the members' weights, relative to the size of a layer's inputs."""
    reference_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight of the reference in the targets of the last hidden layer, the others
    sharing the rest; it falls linearly with depth, from 1 at the first layer. Default:
    chosen on validation by KL to the ensemble, which needs no labels."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the fitted student; the reference is the best member on validation."""
        members.one_architecture("members to be merged must share one architecture")
        members = _best_first(members, bench)
        info = members.info
        network = build_from(info).to(bench.device).eval()
        graph = traced(network)
        batches = list(bench.batches(info.normalization, self.images))
        count = sum(len(images) for images in batches)
        refuse_too_few(count, "images")
        aligned = self.aligned(members, lambda: batches)
        positions = Positions(self.samples, count, bench.seed)
        units = find_units(graph)
        wanted = _Wanted(units, members)
        for state in aligned:
            load_strictly(network, dict(state), "an aligned member", info.architecture)
            wanted.add(outputs_of(network, units, batches, positions))

        def candidate(weight: float) -> Merged:
            start = weighted_soup(aligned, shares_of(weight, len(aligned)))
            load_strictly(network, start, "the aligned mean", info.architecture)
            reestimate_batchnorm(network, batches)
            targets = wanted.mixed(weight)
            fit_layers(graph, units, batches, targets, positions, self.ridge)
            state = {name: t.cpu().clone() for name, t in network.state_dict().items()}
            note = (
                f"the targets follow {members.members[0].name} at the first layer, and "
                f"at the last hidden one still with a weight of {weight:.2f}"
            )
            return Merged(state, info, (note,))

        if self.reference_weight is not None:
            return candidate(self.reference_weight)
        plain = 1 / len(aligned)
        grid = [plain, *(weight for weight in GRID if weight > plain)]
        best: tuple[float, Merged] | None = None
        for weight in grid:
            merged = candidate(weight)
            kl = bench.judge(merged).kl
            bench.say(f"regression: reference weight {weight:.2f}: KL {kl:.4f}")
            if best is None or kl < best[0]:
                best = kl, merged
        assert best is not None
        return best[1]


class _Wanted:
    """What the members compute at every unit: the first, and the mean of the others."""

    def __init__(self, units: Sequence[Unit], ensemble: Ensemble) -> None:
        self.head = next((unit.name for unit in units if unit.is_head), None)
        self.ensemble = ensemble
        self.first: Targets = {}
        self.others: Targets = {}
        self.logits: list[Tensor] = []
        self.members = 0

    def add(self, outputs: Targets) -> None:
        """Add a member's outputs, the reference's first."""
        self.members += 1
        if self.head is not None:
            self.logits.append(outputs.pop(self.head))
        if not self.first:
            self.first = outputs
        elif not self.others:
            self.others = outputs
        else:
            for name, rows in outputs.items():
                self.others[name] += rows

    def mixed(self, weight: float) -> Targets:
        """Return targets in which the reference has that weight at the last layer."""
        targets: Targets = {}
        for place, (name, rows) in enumerate(self.first.items()):
            depth = place / max(1, len(self.first) - 1)
            own, *rest = shares_of(1 - depth * (1 - weight), self.members)
            targets[name] = own * rows
            if rest:
                targets[name] += rest[0] * self.others[name]
        if self.head is not None:
            target = self.ensemble.log_probs(torch.stack(self.logits))
            targets[self.head] = target - target.mean(-1, keepdim=True)
        return targets


def shares_of(weight: float, members: int) -> list[float]:
    """Return the members' weights: the reference's, and equal shares of the rest."""
    if members == 1:
        return [1.0]
    return [weight, *[(1 - weight) / (members - 1)] * (members - 1)]


def _best_first(members: Ensemble, bench: Bench) -> Ensemble:
    """Return the members with the one that is best on validation at the front."""
    split = bench.data.validation
    logits = bench.cache.ensemble_logits(members, split)
    nll = [measure(rows.log_softmax(-1), split.labels).nll for rows in logits]
    best = nll.index(min(nll))
    rest = [i for i in range(len(members)) if i != best]
    return members.subset([best, *rest])
