"""Facts that a report notes beside its figures."""

from pathlib import Path

from metaensemble.data import ImageData
from metaensemble.teachers import Ensemble, Kinship
from metaensemble.workflows.students import Student


def matching_notes(data: ImageData, ensemble: Ensemble, student: Student) -> list[str]:
    """Return what was matched between the data and the networks, a fact each."""
    notes = []
    turned = [m.name for m in ensemble.members if m.order is not None]
    if turned:
        notes.append(
            f"classes of {', '.join(turned)} are in another order than those of "
            f"{data.name}; they are matched by name"
        )
    sizes: dict[tuple[int, int], list[str]] = {}
    for member in ensemble.members:
        if member.image_size is not None:
            sizes.setdefault(member.info.input_shape[1:], []).append(member.name)
    for size, names in sizes.items():
        notes.append(
            f"images of {_pixels(data.input_shape[1:])} are resized to "
            f"{_pixels(size)} for {', '.join(names)}"
        )
    if student.info.classes != data.classes:
        notes.append(f"the student's classes are in another order than {data.name}'s")
    if student.info.input_shape != data.input_shape:
        size = _pixels(student.info.input_shape[1:])
        notes.append(f"the student takes images of {size}")
    return notes


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def shown_path(path: Path, folder: Path | None) -> str:
    """Return a member's path; within the run's own folder, relative to it."""
    inside = folder is not None and path.is_relative_to(folder)
    return str(path.relative_to(folder)) if folder and inside else str(path)


def kin_note(kin: Kinship) -> str:
    """Return whether members share a start, and how that is known."""
    source = "their records say" if kin.recorded else "judged by the cosine"
    return (
        f"members are {kin.regime} ({source}); mean cosine of their weights "
        f"{kin.cosine:.2f}"
    )
