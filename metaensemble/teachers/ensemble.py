"""An ensemble: members of any architecture whose outputs are averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from metaensemble.core.blocks import blocks
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.states import LazyState, State, refuse_different
from metaensemble.data import ImageData, Normalization
from metaensemble.teachers.member import (
    Member,
    MemberInfo,
    fitted_to,
    load_member,
)

Average = Literal["probabilities", "logits"]
"""What is averaged over the members: their probabilities, or their logits."""


def ensemble_log_probs(
    logits: Float[Tensor, "members batch classes"],
    average: Average = "probabilities",
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, "batch classes"]:
    """Return the log-probabilities of the ensemble.

    With ``probabilities``, log of the mean over members of softmax(logits / T), the
    target of Fei et al. 2022, equation 1, and of deep ensembles (arXiv 1612.01474).
    With ``logits``, log-softmax of the mean logits / T. The two differ.

    Args:
        logits: of the members.
        average: what is averaged.
        temperature: T.
        weights: of the members, not negative; None weighs all the same.
    """
    images = logits.transpose(0, 1)  # (batch, members, classes), to go by blocks of
    parts = (rows.transpose(0, 1).float() / temperature for rows in blocks(images))
    if weights is None:
        each = [_mean_of(rows, average) for rows in parts]
    else:
        shares = torch.tensor(weights, device=logits.device)[:, None, None]
        shares = shares / shares.sum()
        each = [_weighted(rows, average, shares) for rows in parts]
    return torch.cat(each)


def _mean_of(logits: Tensor, average: Average) -> Tensor:
    if average == "logits":
        return logits.mean(0).log_softmax(-1)
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def _weighted(logits: Tensor, average: Average, shares: Tensor) -> Tensor:
    if average == "logits":
        return (shares * logits).sum(0).log_softmax(-1)
    return (logits.log_softmax(-1) + shares.log()).logsumexp(0)


@dataclass(frozen=True)
class Ensemble:
    """Trained networks with the same classes and input, and how they are averaged."""

    members: tuple[Member, ...]
    average: Average = "probabilities"
    silent: tuple[int, ...] = ()
    """Positions of members that lend their weights to a merge, but whose outputs are
    not part of the ensemble's."""
    weights: tuple[float, ...] | None = None
    """Of the members' outputs, adding up to 1; None weighs all the same."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def info(self) -> MemberInfo:
        """Return the record of the first member."""
        return self.members[0].info

    def one_architecture(self, why: str) -> str:
        """Return the architecture that all members share.

        Raises:
            InputError: they do not; `why` opens the message.
        """
        first = self.members[0]
        for member in self.members[1:]:
            if member.info.architecture != first.info.architecture:
                raise InputError(
                    f"{why}, but {member.path} is {member.info.architecture} and "
                    f"{first.path} is {first.info.architecture}; "
                    "choose --method kd for teachers of different architectures"
                )
            if member.info.normalization != first.info.normalization:
                raise InputError(
                    f"{why} and one input normalisation, but {member.path} and "
                    f"{first.path} differ in theirs; choose --method kd"
                )
            if member.info.input_shape != first.info.input_shape:
                raise InputError(
                    f"{why} and one input, but {member.path} takes "
                    f"{member.info.input_shape} and {first.path} "
                    f"{first.info.input_shape} (channels, height, width); "
                    "choose --method kd"
                )
            if member.info.classes != first.info.classes:
                raise InputError(
                    f"{why} and one order of classes, but {member.path} and "
                    f"{first.path} differ in theirs; choose --method kd"
                )
        self.refuse_matched(why)
        return first.info.architecture

    def refuse_matched(self, why: str) -> None:
        """Refuse members whose inputs or outputs only match the data's by adapting.

        Their weights cannot be merged in the data's terms.

        Raises:
            InputError: a member has another order of classes, or takes images of
                another size; `why` opens the message.
        """
        for member in self.members:
            if member.order is not None:
                raise InputError(
                    f"{why} and the data's order of classes, but {member.path} has "
                    "them in another; choose --method kd"
                )
            if member.image_size is not None:
                raise InputError(
                    f"{why} and take the data's images as they are, but {member.path} "
                    f"takes {_pixels(member.info.input_shape[1:])} and they are "
                    f"{_pixels(member.image_size)}; choose --method kd, or data of "
                    "that size (--image-size)"
                )

    def states(self, why: str = "members must share one architecture") -> list[State]:
        """Read and return the members' tensors, which must agree in names and shapes.

        Raises:
            InputError: they do not; `why` opens the message.
        """
        self.one_architecture(why)
        states = {str(member.path): member.state() for member in self.members}
        refuse_different(states, why)
        return list(states.values())

    def lazy_states(
        self, why: str = "members must share one architecture"
    ) -> list[LazyState]:
        """Return the members' tensors, each read when it is asked for.

        Raises:
            InputError: they differ in names or shapes; `why` opens the message.
        """
        self.one_architecture(why)
        return [member.lazy_state() for member in self.members]

    def log_probs(
        self, logits: Float[Tensor, "members batch classes"], temperature: float = 1.0
    ) -> Float[Tensor, "batch classes"]:
        """Return the ensemble's log-probabilities from its members' logits."""
        weights = self.weights
        if self.silent:
            heard = [i for i in range(len(logits)) if i not in self.silent]
            logits = logits[heard]
            weights = None if weights is None else tuple(weights[i] for i in heard)
        return ensemble_log_probs(logits, self.average, temperature, weights)

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the members' weights, which add up to 1."""
        if self.weights is not None:
            return self.weights
        return (1 / len(self),) * len(self)

    def fitted_to(self, data: ImageData) -> "Ensemble":
        """Return the ensemble with its members fitted to these images and classes.

        Raises:
            InputError: the classes or the channels are others.
        """
        members = tuple(
            fitted_to(member, data.classes, data.input_shape, data.name)
            for member in self.members
        )
        return replace(self, members=members)

    def weighted(self, weights: Sequence[float]) -> "Ensemble":
        """Return the ensemble with these weights; members of weight 0 leave it.

        Args:
            weights: of all members, not negative, not all 0, of any sum.
        """
        kept = [i for i, weight in enumerate(weights) if weight > 0]
        chosen = self.subset(kept)
        if len({weights[i] for i in kept}) == 1:
            return replace(chosen, weights=None)
        total = sum(weights[i] for i in kept)
        return replace(chosen, weights=tuple(weights[i] / total for i in kept))

    def subset(self, indices: Sequence[int]) -> "Ensemble":
        """Return the ensemble of the chosen members, in that order."""
        silent = tuple(at for at, i in enumerate(indices) if i in self.silent)
        chosen = tuple(self.members[i] for i in indices)
        weights = None
        if self.weights is not None:
            total = sum(self.weights[i] for i in indices)
            weights = tuple(self.weights[i] / total for i in indices)
        return Ensemble(chosen, self.average, silent, weights)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def member_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoint files among `paths`, folders replaced by their content.

    Raises:
        MissingFileError: a path does not exist, or a folder holds no checkpoint.
        InputError: a file is named twice.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            p
            for p in path.iterdir()
            if p.suffix in (".safetensors", ".pt", ".pth") and p.name[0] != "."
        )
        if not inside:
            raise MissingFileError(
                f"a folder of members must hold .safetensors, .pt or .pth files, but "
                f"{path} holds none; make members with: metaensemble teach --out {path}"
            )
        found += inside
    real = [path.resolve() for path in found]
    for i, path in enumerate(real):
        if path in real[:i]:
            raise InputError(
                f"members must be different files, but {found[i]} is named twice; "
                "name each once"
            )
    return found


def load_ensemble(
    paths: Sequence[Path | str],
    *,
    architecture: str | None = None,
    data: ImageData | None = None,
    normalization: Normalization | None = None,
    average: Average = "probabilities",
    at_least: int = 2,
) -> Ensemble:
    """Return the ensemble of the members in files and folders `paths`.

    Args:
        paths: member files, or folders of them.
        architecture: for bare state dicts, what they are.
        data: checked against the members; needed for bare state dicts.
        normalization: for bare state dicts, that of their training; default: of `data`.
        average: what the ensemble averages.
        at_least: how many members there must be.

    Raises:
        MissingFileError: a path does not exist.
        InputError: too few members, equal members, a broken one, or members that
            disagree on classes or input.
    """
    files = member_paths([Path(path) for path in paths])
    if len(files) < at_least:
        raise InputError(
            f"an ensemble must have at least {at_least} "
            f"member{'s' * (at_least > 1)}, but got {len(files)}; "
            "name more member files, or a folder of them"
        )
    members = tuple(
        load_member(
            file, architecture=architecture, data=data, normalization=normalization
        )
        for file in files
    )
    for i, member in enumerate(members):
        for other in members[:i]:
            if member.sha256 == other.sha256:
                raise InputError(
                    f"members must be different networks, but {member.path} and "
                    f"{other.path} hold the same bytes; leave one out"
                )
    if data is None:
        first = members[0]
        members = tuple(
            fitted_to(m, first.info.classes, first.info.input_shape, str(first.path))
            for m in members
        )
    return Ensemble(members, average)
