"""Candidates for a student: their figures, and how they outlive an interruption."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaensemble.core.files import write_json
from metaensemble.metrics import latency_ms, macs, parameters
from metaensemble.report.choice import Candidate
from metaensemble.teachers import load_member, save_member
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import Student, state_of

FOLDER = ".candidates"
"""Within a working folder; removed when the run is done."""


@dataclass(frozen=True)
class Tried:
    """A candidate with its network."""

    method: str
    settings: str
    student: Student
    log_probs: Tensor
    """On validation, (images, classes)."""


class Kept:
    """What is kept in the working folder of a run that may be interrupted."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.folder = session.folder / FOLDER if session.folder else None
        self._known: dict[str, Any] = {}

    def clear(self) -> None:
        """Remove what was kept: the run is done."""
        if self.folder and self.session.world.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def student(self, name: str, make: Callable[[], Student]) -> Student:
        """Return the student that was made before under this name, or make it."""
        path = self.folder / f"{name}.safetensors" if self.folder else None
        known = path is not None and self.session.world.agreed(path.exists)
        if not known:
            student = make()
            if path is not None and self.session.world.first:
                _save(path, student)
            self.session.world.wait()
            return student
        assert path is not None
        return _load(path, self.session)

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what was found before under this name, or find it.

        Args:
            name: of the file.
            make: finds it, in the first process; something that JSON can hold.
        """
        if name in self._known:
            return self._known[name]
        path = self.folder / f"{name}.json" if self.folder else None

        def found() -> Any:
            if path is not None and path.exists():
                return json.loads(path.read_text(encoding="utf-8"))
            value = make()
            if path is not None:
                write_json(path, value)
            return value

        self._known[name] = self.session.world.agreed(found)
        return self._known[name]


def costs_of(session: Session, student: Student) -> dict[str, Any]:
    """Return what a student takes to make and to serve, as a candidate's fields."""
    shape = student.info.input_shape
    network = student.network.eval()
    example = torch.zeros(1, *shape, device=session.device)
    with torch.inference_mode():
        latency = latency_ms(lambda: network(example))
    return {
        "parameters": parameters(network),
        "macs": macs(network, shape),
        "latency_ms": latency,
        "train_seconds": student.train_seconds,
        "train_images": student.train_images,
    }


def dominated(row: Candidate, rows: list[Candidate]) -> bool:
    """Return whether another candidate is at least as good in all that counts.

    Accuracy, NLL, multiply-accumulates and the seconds of making; in one it is better.
    """

    def values(of: Candidate) -> tuple[float, ...]:
        return (-of.accuracy, of.nll, float(of.macs), of.train_seconds)

    own = values(row)
    return any(
        all(a <= b for a, b in zip(values(other), own, strict=True))
        and values(other) != own
        for other in rows
    )


def _save(path: Path, student: Student) -> None:
    record = {
        "train_seconds": student.train_seconds,
        "train_images": student.train_images,
        "teacher_images": student.teacher_images,
        "stage": student.stage,
        "history": student.history,
        "notes": list(student.notes),
    }
    info = student.info.model_copy(update={"training": {"candidate": record}})
    save_member(path, state_of(student.network), info)


def _load(path: Path, session: Session) -> Student:
    member = load_member(path)
    record = dict(member.info.training["candidate"])
    notes = tuple(record.pop("notes"))
    network = member.network().to(session.device)
    info = member.info.model_copy(update={"training": {}})
    return Student(network, info, notes=notes, **record)
