"""The Python interface: what ``import metaensemble as me`` gives."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.data import ImageData, Normalization, Split
from metaensemble.engine import RunLog
from metaensemble.engine import evaluate as evaluate_network
from metaensemble.export import Format
from metaensemble.methods import OnlineMethod
from metaensemble.metrics import Measured
from metaensemble.report import Findings, Report
from metaensemble.teachers import Average, Ensemble, Member
from metaensemble.teachers import load_ensemble as load_members
from metaensemble.teachers.member import class_order, fitted_to, prepared
from metaensemble.workflows.exporting import (
    Exported,
    ExportOptions,
    export_member,
    export_run,
    refuse_output,
)
from metaensemble.workflows.fuse import Choices, Fusion, fuse_and_find
from metaensemble.workflows.online import grow
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import MethodUnion, make_method
from metaensemble.workflows.reporting import measure_student, save_student
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
    _data: ImageData

    @property
    def ensemble(self) -> Ensemble:
        """The networks that it was made of, or trained with: members on disk."""
        return self._ensemble

    @property
    def others(self) -> tuple[Member, ...]:
        """What an online method trained beside them, such as their gated ensemble."""
        return self._found.others

    def save(self, path: Path | str) -> Member:
        """Write the network as a member file, whole or not at all, and return it."""
        member = save_student(
            Path(path), self._ensemble, self._student, self._method, self._found
        )
        data = self._data
        return fitted_to(member, data.classes, data.input_shape, data.name)

    def measured_on(self, split: Split) -> Measured:
        """Return the figures of the network on a split of the data.

        Its classes are matched by name, and images are resized for it, where it is a
        member that has others than the data.
        """
        info, data = self._student.info, self._data
        order = class_order(info.classes, data.classes, "the student", data.name)
        prepare = partial(prepared, info=info)
        return evaluate_network(self.network, prepare, split, order=order).measured


def load_ensemble(
    paths: Sequence[Path | str],
    *,
    architecture: str | None = None,
    data: ImageData | None = None,
    normalization: Normalization | None = None,
    average: Average = "probabilities",
) -> Ensemble:
    """Return the ensemble of the members in files and folders; one is enough for KD.

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
        at_least=1,
    )


def fuse(
    ensemble: Ensemble | None,
    data: ImageData,
    method: MethodUnion | str = "kd",
    *,
    student: str | None = None,
    select: Literal["greedy"] | None = None,
    teacher_weights: str | Sequence[float] = "equal",
    calibrate: bool = False,
    fallback: Literal["best_member"] | None = None,
    networks: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Fused:
    """Return one network made of an ensemble, or trained together with one.

    Args:
        ensemble: the members; None for an online method, which trains its own.
        data: trained on, selected with (validation) and, once, measured on (test).
        method: a method of `metaensemble.methods` or `metaensemble.merging`, or its
            name, which stands for its defaults.
        student: architecture of the student; default: that of the first member. An
            online method must be told.
        select: ``greedy`` first selects members on validation, with replacement.
        teacher_weights: of the members' outputs: ``equal``, ``validation`` (those of
            the smallest NLL there), or a number per member.
        calibrate: fold a temperature, fitted on validation, into the student.
        fallback: ``best_member`` gives that member instead of a student that is below
            it on validation; the report says so.
        networks: a folder for the member files of what an online method trains;
            default: a temporary one, which goes with what is returned.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ...
        cache: folder of teacher outputs; default as for the commands.
        quiet: show no progress.

    Raises:
        InputError: the method cannot work with these members or without, with these
            weights or this student, or there is no such fallback or selection.
    """
    if select not in (None, "greedy"):
        raise InputError(
            f"select must be None or 'greedy', but is {select!r}; choose one of them"
        )
    if fallback not in (None, "best_member"):
        raise InputError(
            f"fallback must be None or 'best_member', but is {fallback!r}; "
            "choose one of them"
        )
    how = make_method(method) if isinstance(method, str) else method
    choices = Choices(
        student,
        "none" if fallback is None else "best-member",
        select or "none",
        teacher_weights,
        calibrate,
    )
    options = RunOptions(seed=seed, device=device, cache=cache, quiet=quiet)
    temporary = ensemble is None and networks is None
    folder = Path(tempfile.mkdtemp() if temporary else networks or ".")
    try:
        with RunLog(quiet=quiet) as log:
            session = open_session(options, data, None, log)
            if ensemble is None:
                made = _grown(session, how, choices, folder)
            else:
                made = fuse_and_find(session, ensemble.fitted_to(data), how, choices)
            report = measure_student(
                session,
                made.ensemble,
                made.student,
                command="metaensemble.fuse",
                method=how,
                found=made.found,
            ).report
    except BaseException:
        if temporary:
            shutil.rmtree(folder)
        raise
    one = made.student
    network, normalization = one.network.eval(), one.info.normalization
    fused = Fused(
        network, normalization, report, one, made.ensemble, how, made.found, data
    )
    if temporary:
        weakref.finalize(fused, shutil.rmtree, folder, ignore_errors=True)
    return fused


def _grown(
    session: Session, method: MethodUnion, choices: Choices, folder: Path
) -> Fusion:
    if not isinstance(method, OnlineMethod):
        raise InputError(
            f"{method.name_} must have members, but got none; pass load_ensemble([...])"
        )
    grown = grow(session, method, choices, folder)
    return Fusion(grown.student, grown.ensemble, grown.found)


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
        network = model.network()
        return evaluate_network(
            network, model.prepare, split, order=model.order
        ).measured
    if isinstance(model, Fused):
        return model.measured_on(split)
    if normalization is None:
        raise InputError(
            "a bare network must come with its input normalisation, but there is none; "
            "pass normalization=data.normalization, or that of its training"
        )
    return evaluate_network(model, normalization, split).measured


def export_model(
    model: Fused | Member | Path | str,
    out: Path | str,
    format: Format = "onnx",
    *,
    data: ImageData | None = None,
    architecture: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network as one file for other runtimes, verified, and return its figures.

    Args:
        model: what `fuse` returned, a member, or the path of a run or of a member.
        out: the file; its figures go beside it, to ``FILE.json``.
        format: ``onnx``, ``torch_export`` or ``safetensors``.
        data: on whose test images it is verified; default: what `model` was fused with,
            else what the run's ``config.yaml`` names, else random images.
        architecture: of a bare state dict; also your consent to import a factory that
            the record of the file `model` names.
        overwrite: replace files that exist.

    Raises:
        InputError: the network cannot be expressed in the format, or its file would not
            give the same logits; nothing is written then.
    """
    out = Path(out)
    if isinstance(model, (str, Path)):
        options = ExportOptions(
            run=Path(model),
            format=format,
            out=out,
            architecture=architecture,
            overwrite=overwrite,
        )
        return export_run(options, data)
    inputs = [model.path] if isinstance(model, Member) else []
    refuse_output(out, format, overwrite=overwrite, inputs=inputs)
    if isinstance(model, Member):
        return export_member(model, out, format, data=data)
    with tempfile.TemporaryDirectory() as folder:
        member = model.save(Path(folder) / "student.safetensors")
        return export_member(
            member,
            out,
            format,
            data=data or model._data,
            teachers=model.ensemble.members,
        )
