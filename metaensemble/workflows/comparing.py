"""Runs side by side: read, checked to be on the same data, compared, written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of, write_text
from metaensemble.core.guards import load_yaml
from metaensemble.report import Report, read_reports, write_report
from metaensemble.report.comparison import Comparison, differences
from metaensemble.report.leaderboard import leaderboard_markdown
from metaensemble.report.page import write_page
from metaensemble.report.predictions import FOLDER, Predictions, load_predictions

CHOICES = {
    "student": None,
    "select": "none",
    "teacher_weights": "equal",
    "calibrate": False,
    "average": "probabilities",
    "unlabelled": False,
}
"""Options of `fuse` that make another method of it, and their defaults."""


class CompareOptions(Config):
    """Compare runs on the same data."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Run folders, or the folder of a demo, a study or an earlier comparison: whatever
    holds a report.json. Runs of one method that differ in their seeds or members alone
    are one line, the mean of them."""
    out: Path
    """The folder to write: page.html, table.md and report.json."""
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Runs:
    """What lies in the folders that are compared."""

    reports: list[Report]
    predictions: list[Predictions | None]
    """Of each report; older runs have none."""

    @property
    def unpredicted(self) -> int:
        """Return how many reports have no predictions beside them."""
        return self.predictions.count(None)


def read_runs(paths: Sequence[Path]) -> Runs:
    """Return the reports and predictions of runs.

    Raises:
        MissingFileError: a folder is no run.
        InputError: a report is none, or of another schema; a run is named twice; or the
            runs are on different data.
    """
    reports: list[tuple[Path, Report]] = []
    predictions: list[Predictions | None] = []
    seen: dict[Path, Path] = {}
    for path in paths:
        found = read_reports(path)
        folder = path if path.is_dir() else path.parent
        first = seen.setdefault(folder.resolve(), path)
        if first is not path:
            raise InputError(
                f"every run must be named once, but {first} and {path} are one; "
                "leave one out"
            )
        choices = _choices(folder) if len(found) == 1 else {}
        reports += [(path, _with_choices(report, choices)) for report in found]
        kept = map(load_predictions, sorted((folder / FOLDER).glob("*.safetensors")))
        by_student = {one.student_sha256: one for one in kept}
        predictions += [by_student.get(report.student.sha256) for report in found]
    _refuse_different(reports, predictions)
    return Runs([report for _, report in reports], predictions)


def compare_into(folder: Path, title: str, runs: Runs) -> Comparison:
    """Write page.html, table.md and report.json of a comparison; return the last."""
    found = differences(runs.reports, runs.predictions)
    comparison = Comparison(rows=runs.reports, differences=found)
    write_report(folder / "report.json", comparison)
    write_text(folder / "table.md", leaderboard_markdown(runs.reports, found))
    write_page(folder / "page.html", title, runs.reports, differences=found)
    return comparison


def hashes_of(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of the reports, which identify a comparison."""
    files = (path / "report.json" if path.is_dir() else path for path in paths)
    return [sha256_of(file) for file in files]


def _choices(folder: Path) -> dict[str, Any]:
    """Return what the config of a run says beside its method, defaults left out."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = load_yaml(path)
    except ValueError:  # the report is what counts
        return {}
    if not isinstance(config, dict):
        return {}
    kept = {name: config.get(name, usual) for name, usual in CHOICES.items()}
    return {name: value for name, value in kept.items() if value != CHOICES[name]}


def _with_choices(report: Report, choices: Mapping[str, Any]) -> Report:
    """Return the report with what was chosen beside its method among its settings."""
    method = {**choices, **report.method}
    return report.model_copy(update={"method": method})


def _refuse_different(
    reports: Sequence[tuple[Path, Report]], predictions: Sequence[Predictions | None]
) -> None:
    """Refuse runs whose data, classes or test images differ."""
    (first, yardstick), *others = reports
    for path, report in others:
        if report.data != yardstick.data:
            raise InputError(
                f"runs must be on the same data to be compared, but {first} is on "
                f"{_told(yardstick)} and {path} on {_told(report)}; compare them apart"
            )
        own, theirs = _names(yardstick), _names(report)
        if own and theirs and own != theirs:
            odd = sorted(own ^ theirs)[0]
            raise InputError(
                f"runs must be on the same classes to be compared, but {odd!r} is one "
                f"of {first if odd in own else path} alone; compare them apart"
            )
    kept = [
        (path, predicted)
        for (path, _), predicted in zip(reports, predictions, strict=True)
        if predicted is not None
    ]
    for path, found in kept[1:]:
        first, base = kept[0]
        same = found.classes == base.classes and found.images == base.images
        if not same or not found.labels.equal(base.labels):
            raise InputError(
                f"runs must be on the same test images to be compared, but those of "
                f"{path} are not those of {first}, or in another order; compare them "
                "apart"
            )


def _told(report: Report) -> str:
    data = report.data
    return (
        f"{data.name} ({data.train:,} training, {data.validation:,} validation and "
        f"{data.test:,} test images of {data.classes} classes)"
    )


def _names(report: Report) -> set[str]:
    return {row.name for row in report.per_class}
