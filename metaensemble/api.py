"""The Python interface: what ``import metaensemble as me`` gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.data import ImageData, Normalization, Split
from metaensemble.engine import RunLog
from metaensemble.engine import evaluate as evaluate_network
from metaensemble.metrics import Measured
from metaensemble.report import Findings, Report
from metaensemble.teachers import Average, Ensemble, Member
from metaensemble.teachers import load_ensemble as load_members
from metaensemble.workflows.fuse import fuse_and_find
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.reporting import report_student, save_student
from metaensemble.workflows.students import Student


@dataclass(frozen=True)
class Fused:
    """The one network, and the report that says how near it comes to the ensemble."""

    network: nn.Module
    """In eval mode; takes images normalised by `normalization`."""
    normalization: Normalization
    """Takes uint8 images (batch, channels, height, width)."""
    report: Report
    """As ``report.json`` holds it."""
    _student: Student
    _ensemble: Ensemble
    _method: MethodUnion
    _found: Findings

    def save(self, path: Path | str) -> Member:
        """Write the network as a member file, whole or not at all, and return it."""
        return save_student(
            Path(path), self._ensemble, self._student, self._method, self._found
        )


def load_ensemble(
    paths: Sequence[Path | str],
    *,
    architecture: str | None = None,
    data: ImageData | None = None,
    normalization: Normalization | None = None,
    average: Average = "probabilities",
) -> Ensemble:
    """Return the ensemble of the members in files and folders.

    Args:
        paths: member files that metaensemble wrote, bare ``.safetensors``, ``.pt`` or
            ``.pth`` state dicts, or folders of them.
        architecture: of bare state dicts: a built-in name with fields
            (``resnet20,width=2``) or ``package.module:factory``.
        data: gives bare state dicts their classes, input and normalisation; checked
            against all members.
        normalization: of bare state dicts, that of their training; default: of `data`.
        average: what the ensemble averages.

    Raises:
        MissingFileError: a path does not exist.
        InputError: a file is broken, or the members do not form an ensemble.
    """
    return load_members(
        paths,
        architecture=architecture,
        data=data,
        normalization=normalization,
        average=average,
    )


def fuse(
    ensemble: Ensemble,
    data: ImageData,
    method: MethodUnion | str = "kd",
    *,
    student: str | None = None,
    fallback: Literal["best_member"] | None = None,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Fused:
    """Return one network made of an ensemble.

    Args:
        ensemble: the members.
        data: trained on, selected with (validation) and, once, measured on (test).
        method: a method of `metaensemble.methods` or `metaensemble.merging`, or its
            name, which stands for its defaults.
        student: architecture of the student; default: that of the first member.
        fallback: ``best_member`` gives that member instead of a student that is below
            it on validation; the report says so.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ...
        cache: folder of teacher outputs; default as for the commands.
        quiet: show no progress.

    Raises:
        InputError: the method cannot work with these members or this student, or there
            is no such fallback.
    """
    if fallback not in (None, "best_member"):
        raise InputError(
            f"fallback must be None or 'best_member', but is {fallback!r}; "
            "choose one of them"
        )
    how = make_method(method) if isinstance(method, str) else method
    options = RunOptions(seed=seed, device=device, cache=cache, quiet=quiet)
    with RunLog(quiet=quiet) as log:
        session = open_session(options, data, None, log)
        made, found = fuse_and_find(
            session,
            ensemble,
            how,
            student,
            "none" if fallback is None else "best-member",
        )
        report = report_student(
            session,
            ensemble,
            made,
            command="metaensemble.fuse",
            method=how,
            found=found,
        )
    network = made.network.eval()
    return Fused(network, made.info.normalization, report, made, ensemble, how, found)


def evaluate(
    model: Member | Fused | nn.Module,
    split: Split,
    normalization: Normalization | None = None,
) -> Measured:
    """Return accuracy, top-5, NLL, Brier and ECE of a model on a split.

    Args:
        model: a member, what `fuse` returned, or any network.
        split: ``data.test``, ``data.validation``, ...
        normalization: of a bare network; the others bring their own.
    """
    if isinstance(model, Member):
        network, normalization = model.network(), model.info.normalization
    elif isinstance(model, Fused):
        network, normalization = model.network, model.normalization
    else:
        network = model
    if normalization is None:
        raise InputError(
            "a bare network must come with its input normalisation, but there is none; "
            "pass normalization=data.normalization, or that of its training"
        )
    return evaluate_network(network, normalization, split).measured
