"""From a run, or a member, to one verified file that other runtimes read."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import (
    atomic_path,
    claim_output,
    sha256_of,
    write_json,
)
from metaensemble.core.guards import load_yaml, one_line
from metaensemble.data import ImageData, parse_normalization
from metaensemble.export import (
    FORMATS,
    Format,
    Verified,
    latencies,
    open_written,
    random_images,
    runtime_version,
    verify,
    write_export,
)
from metaensemble.models import Architecture
from metaensemble.report import TeacherRow, read_report
from metaensemble.teachers import Member, load_member
from metaensemble.workflows.options import DataOptions
from metaensemble.workflows.reporting import STUDENT_FILE

AIM = 1.1
"""The student's latency is to be at most this part of the mean member's."""


class ExportOptions(Config):
    """What is exported, how, and on which images it is verified."""

    run: Path
    """A run folder, or a member file."""
    format: Format = "onnx"
    """onnx, torch_export (a program for torch.export.load), or safetensors (the
    network's tensors with a record)."""
    out: Path
    """The file to write; the figures go beside it, to FILE.json."""
    data: str | None = None
    """On whose test images the file is verified; default: the data that the run's
    config.yaml names, else random images."""
    image_size: int | None = Field(default=None, ge=1)
    """Height and width for image folders, as for fuse."""
    architecture: str | None = None
    """Of a bare state dict; also your consent to import a factory that the student's
    record names."""
    normalization: str = "data"
    """Input normalisation of a bare state dict, as for fuse."""
    overwrite: bool = False
    """Replace the file and its figures if they exist."""


@dataclass(frozen=True)
class Exported:
    """An exported file and what was measured of it."""

    path: Path
    format: Format
    student_sha256: str
    sha256: str
    verified: Verified
    on: str
    """Which images it was verified on."""
    runtime: str
    """What ran it, with its version."""
    latency_ms: dict[str, dict[str, float]]
    """See `metaensemble.export.latencies`."""
    members: int
    """Of the ensemble that was timed; 0 where none was."""
    threads: int
    """That each runtime computed with."""
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> Path:
        """Return the file of the figures."""
        return figures_of(self.path)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they are written."""
        return {
            "schema": 1,
            "format": self.format,
            "file": self.path.name,
            "sha256": self.sha256,
            "student_sha256": self.student_sha256,
            "runtime": self.runtime,
            "verified": {**asdict(self.verified), "on": self.on},
            "latency_ms": self.latency_ms,
            "latency_of": {
                "batch": 1,
                "members": self.members,
                "threads": self.threads,
            },
            "notes": list(self.notes),
        }


def figures_of(out: Path) -> Path:
    """Return where the figures of an exported file lie."""
    return out.with_name(out.name + ".json")


def export_run(options: ExportOptions, data: ImageData | None = None) -> Exported:
    """Export the student of a run, or a member, as the options say.

    Args:
        options: what, how, where.
        data: that at hand already, instead of what the options name.

    Raises:
        MissingFileError: there is no such run.
        InputError: the student cannot be expressed in the format, its file would not
            give the same logits, or an option is wrong; nothing is written then.
    """
    folder = options.run if options.run.is_dir() else None
    path = options.run if folder is None else folder / STUDENT_FILE
    refuse_output(
        options.out,
        options.format,
        overwrite=options.overwrite,
        inputs=[options.run, path],
    )
    if not path.exists():
        raise MissingFileError(
            f"RUN must be a run folder or a member file, but {path} does not exist; "
            f"make one with: metaensemble fuse MEMBER... --out {options.run}"
        )
    notes: list[str] = []
    if data is None:
        data = _data(options, folder, notes)
    channels = 1 if data is None else data.input_shape[0]
    student = load_member(
        path,
        architecture=options.architecture,
        data=data,
        normalization=parse_normalization(options.normalization, channels),
    )
    teachers = _teachers(options, folder, data, notes)
    return export_member(
        student,
        options.out,
        options.format,
        data=data,
        teachers=teachers,
        notes=notes,
    )


def refuse_output(
    out: Path, format: Format, *, overwrite: bool, inputs: Sequence[Path] = ()
) -> None:
    """Refuse an output whose name is of another kind, or that exists.

    Raises:
        InputError: see there.
    """
    suffix = FORMATS[format].suffix
    if out.suffix != suffix:
        raise InputError(
            f"--out must end in {suffix} for --format {format}, but is {out}; rename it"
        )
    for path in (out, figures_of(out)):
        claim_output(path, overwrite=overwrite, inputs=inputs)


def export_member(
    student: Member,
    out: Path,
    format: Format,
    *,
    data: ImageData | None = None,
    teachers: Sequence[Member] = (),
    notes: Sequence[str] = (),
) -> Exported:
    """Write a member's network to `out` once it is verified, and return the figures.

    Args:
        student: the member.
        out: the file; the figures are written beside it.
        format: see `metaensemble.export.FORMATS`.
        data: whose test images it is verified on; None for random ones.
        teachers: the ensemble that it is timed beside; may be empty.
        notes: what else is to be said.

    Raises:
        InputError: as `export_run`.
    """
    notes = list(notes)
    split, on = random_images(student.info.input_shape), "random images"
    if data is not None:
        split, on = data.test, f"test images of {data.name}"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"student{FORMATS[format].suffix}"
        write_export(format, made, student)
        run = open_written(format, made, student.info.architecture)
        verified = verify(student, run, split)
        del run
        if not verified.images:
            raise InputError(
                f"an export must be verified on at least one image, but {on} are none; "
                "choose other --data"
            )
        try:
            latency = latencies(student, teachers, format, made)
        except InputError as error:
            if not teachers:
                raise
            notes.append(f"the ensemble is not timed: {error}")
            teachers = ()
            latency = latencies(student, teachers, format, made)
        exported = Exported(
            path=out,
            format=format,
            student_sha256=student.sha256,
            sha256=sha256_of(made),
            verified=verified,
            on=on,
            runtime=runtime_version(format),
            latency_ms=latency,
            members=len(teachers),
            threads=torch.get_num_threads(),
            notes=tuple(notes),
        )
        with atomic_path(out) as temporary:
            shutil.copyfile(made, temporary)
            write_json(exported.figures, exported.as_json())
    return exported


def summary(exported: Exported) -> str:
    """Return what is to be known of an export, a line each."""
    seen, size = exported.verified, exported.path.stat().st_size
    apart = f", {seen.ties:,} ties apart" if seen.ties else ""
    lines = [
        f"{exported.path}: {exported.format}, {size:,} bytes",
        f"Verified in {exported.runtime} on {seen.images:,} {exported.on}: "
        f"logits differ by at most {seen.max_difference:.2g}, "
        f"{seen.unequal_decisions:,} decisions are unequal{apart}",
    ]
    threads = f"{exported.threads} thread{'s' * (exported.threads > 1)}"
    for runtime, ms in exported.latency_ms.items():
        name = "PyTorch" if runtime == "torch" else FORMATS[exported.format].runtime
        line = f"One image in {name}, {threads}: student {ms['student']:.3g} ms"
        if "ensemble" in ms:
            line += (
                f", ensemble of {exported.members} {ms['ensemble']:.3g} ms: ratio "
                f"{ms['ratio']:.3f} (aim: at most {AIM / exported.members:.3f})"
            )
        lines.append(line)
    notes = [f"Note: {note}" for note in exported.notes]
    return "\n".join([*lines, *notes, f"Figures: {exported.figures}"])


def _data(
    options: ExportOptions, folder: Path | None, notes: list[str]
) -> ImageData | None:
    """Return the data to verify on; None, with a note, where there are none."""
    if options.data is not None:
        fields = {"data": options.data, "image_size": options.image_size}
        return DataOptions(**fields).load()
    data = None
    if folder is not None:
        try:
            data = _data_options(folder / "config.yaml").load()
        except (InputError, ValidationError) as error:
            notes.append(f"the run's data cannot be read ({one_line(error)})")
    if data is None:
        notes.append("verified on random images; name real ones by --data")
    return data


def _data_options(path: Path) -> DataOptions:
    """Return which data a run's config names.

    Raises:
        InputError: there is no config that can be read.
        ValidationError: it names none.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no {path}")
    try:
        told = load_yaml(path)
    except ValueError as error:
        raise InputError(f"{path} is not YAML: {one_line(error)}") from error
    told = told if isinstance(told, dict) else {}
    known = {name: told[name] for name in DataOptions.model_fields if name in told}
    return DataOptions.model_validate(known)


def _teachers(
    options: ExportOptions,
    folder: Path | None,
    data: ImageData | None,
    notes: list[str],
) -> list[Member]:
    """Return the members of a run's ensemble; none, with a note, if one is not there.

    Their files are those that the report names, and still of the same bytes.
    """
    if folder is None:
        return []
    try:
        rows = read_report(folder).teachers
        return [_teacher(row, options, folder, data) for row in rows]
    except InputError as error:
        notes.append(f"the ensemble is not timed: {error}")
        return []


def _teacher(
    row: TeacherRow, options: ExportOptions, folder: Path, data: ImageData | None
) -> Member:
    for path in (Path(row.path), folder / row.path):
        if path.is_file() and sha256_of(path) == row.sha256:
            break
    else:
        raise InputError(
            f"its members must lie where the report says, but {row.path} is not "
            "there, or is another; put it back to time the ensemble"
        )
    # On a report's word alone, no code is imported.
    foreign = Architecture.parse(row.architecture).is_import_path
    known = options.architecture if foreign else row.architecture
    return load_member(path, architecture=known, data=data)
