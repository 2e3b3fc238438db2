"""Reports on disk: written whole, read with every doubt spelled out."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import write_json
from metaensemble.core.guards import one_line, parse_json, refuse_irregular
from metaensemble.report.comparison import Comparison
from metaensemble.report.schema import SCHEMA, Report, Rows, Study

Document = Report | Rows | Study | Comparison
"""What a report.json may hold."""

OPTIONAL = (
    "regime",
    "stage",
    "draw",
    "verdict",
    "notes",
    "conditioning",
    "reliability",
    "history",
    "diagnosis",
    "barrier",
    "against_best",
    "others",
    "trained_together",
    "choice",
    "intervals",
    "per_class",
)
"""Keys of a report that are left out of the JSON where they hold nothing."""


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return versions, platform, number of threads and device, for a report."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metaensemble": version("metaensemble"),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def as_json(document: Document) -> dict[str, Any]:
    """Return the document as plain JSON values, optional keys only where filled."""
    value = document.model_dump(mode="json", by_alias=True)
    for row in value.get("rows", [value]):
        for key in OPTIONAL:
            if row[key] is None or row[key] == []:
                del row[key]
        for teacher in row["teachers"]:
            if teacher["weight"] is None:
                del teacher["weight"]
        bins = row.get("reliability")
        if bins is not None and bins["best_member"] is None:
            del bins["best_member"]
    return value


def write_report(path: Path, report: Document) -> None:
    """Write a report, whole or not at all; a NaN anywhere is refused."""
    write_json(path, as_json(report))


def read_report(path: Path) -> Report:
    """Return the report of one run.

    Args:
        path: a run folder, or the report.json in it.

    Raises:
        MissingFileError: there is no report.
        InputError: it is no report, of another schema, or holds several rows.
    """
    reports = read_reports(path)
    if len(reports) != 1:
        raise InputError(
            f"one report is wanted here, but {path} holds {len(reports)} rows; "
            "name the folder of one run"
        )
    return reports[0]


def read_reports(path: Path) -> list[Report]:
    """Return every report of a run, of a demo or of a study, in their order.

    Raises:
        MissingFileError: there is no report.
        InputError: it is no report, or of another schema.
    """
    path = path / "report.json" if path.is_dir() else path
    if not path.exists():
        raise MissingFileError(
            f"a run must hold a report, but {path} does not exist; "
            "make one with: metaensemble fuse MEMBER... --out RUN"
        )
    refuse_irregular(path, "a report")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"a report must be JSON, but {path} is not ({one_line(error)}); "
            "write it again"
        ) from error
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        raise InputError(
            f"a report must be of schema {SCHEMA}, but {path} has schema "
            f"{one_line(repr(found))}; "
            "read it with the metaensemble version that wrote it"
        )
    kind = Study if "study" in value else Rows if "rows" in value else Report
    kind = Comparison if "differences" in value else kind
    try:
        document = kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = one_line(".".join(str(part) for part in first["loc"]))
        raise InputError(
            f"a report must follow schema {SCHEMA}, but in {path} {place!r} does not "
            f"({one_line(first['msg'])}); write it again"
        ) from error
    return [document] if isinstance(document, Report) else document.rows
