"""What a run tells while it runs: ``log.jsonl`` always, progress on the terminal."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from metaensemble.engine.lines import JsonLines
from metaensemble.engine.memory import peak_memory
from metaensemble.engine.pace import Pace
from metaensemble.engine.tensorboard import Curves

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where the output is no terminal."""
LOG_INTERVAL = 10.0
"""Seconds between ``progress`` events."""
LIVE_INTERVAL = 0.1
"""Seconds between changes of the live bar."""
NARROW = 60
"""Columns below which a terminal is shown only how far it is and the time left."""
WIDE = 100
"""Columns from which on a terminal is shown a bar."""


class RunLog:
    """Appends events to a file as JSON lines and shows progress on standard error.

    On a terminal progress is a live bar with the rate and the time left; elsewhere a
    line every ten seconds. Use as a context manager: a session then begins with an
    event ``session``, which has the date and versions. A line that cannot be written
    (the disk is full, the folder is gone) is said once and stops nothing.

    Args:
        path: the log file; None writes none.
        quiet: show nothing but that the log cannot be written.
        tensorboard: where to write the figures of validations for TensorBoard, a run
            per stage; None for nowhere.

    Raises:
        InputError: TensorBoard is asked for, but not installed.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        quiet: bool = False,
        tensorboard: Path | None = None,
    ):
        self.path = path
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        dumb = self.console.is_dumb_terminal
        self._live = self.console.is_terminal and not dumb and not quiet
        self._progress = _bar(self.console, live=self._live)
        self._lines = JsonLines(path) if path else None
        self._curves = Curves(tensorboard) if tensorboard else None
        self._greeting = False
        self._complained: set[str] = set()
        self._task: TaskID | None = None
        self._what = ""
        self._total, self._images = 1, None
        self._started = self._printed = self._logged = self._drawn = monotonic()
        self._pace = Pace(1, 0, self._started)

    def __enter__(self) -> "RunLog":
        self._greeting = True
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._curves:
            self._try("TensorBoard's files", self._curves.close)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event: its kind, seconds since the start, and the fields.

        Events ``validation`` of the stage that was begun (fields ``what``, ``step``
        and the figures) also go to TensorBoard and into the time left.
        """
        if kind == "validation" and fields.get("what") == self._what:
            self._validated(**fields)
        self._append(kind, fields)

    def say(self, text: str) -> None:
        """Show one line and keep it."""
        self._progress.console.print(text, highlight=False)

    def begin(
        self,
        what: str,
        total: int,
        done: int = 0,
        *,
        images: int | None = None,
        validation: float = 0.0,
    ) -> None:
        """Start to show the progress of `what`, `total` steps, `done` of them done.

        Args:
            what: the name of the stage.
            total: its number of steps.
            done: steps that earlier sessions did.
            images: images per step, where the rate is to be told in images.
            validation: seconds that a validation took in earlier sessions, 0 for
                unknown.
        """
        self._what, self._total, self._images = what, max(1, total), images
        self._pace = Pace(self._total, done, monotonic(), validation)
        if self._curves:
            self._curves.begin(what, done)
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            what, total=total, completed=done, rate="", memory="", detail="", ends=None
        )

    def advance(self, done: int, detail: str = "") -> None:
        """Show that `done` steps are done; `detail` is a short text beside the bar."""
        now = monotonic()
        self._pace.observe(done, now)
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            self._append("progress", self._figures(done))
        if self._live and (now - self._drawn >= LIVE_INTERVAL or done == self._total):
            self._drawn = now
            self._draw(done, detail, now)
        elif not self._live and now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            left = self._pace.left
            told = "" if left is None else f"{_span(left)} left"
            parts = [self._rate(), _memory_text(), f"{told} {detail}".strip()]
            text = ", ".join(part for part in parts if part)
            self.say(escape(f"{self._what}: {done}/{self._total}, {text}"))

    def _draw(self, done: int, detail: str, now: float) -> None:
        if self._task is None:
            return
        left = self._pace.left
        self._progress.update(
            self._task,
            completed=done,
            rate=self._rate(),
            memory=_memory_text(),
            detail=detail,
            ends=None if left is None else now + left,
        )

    def _rate(self) -> str:
        """Return the present speed as a text; empty while it is unknown."""
        step = self._pace.step_seconds
        if step is None:
            return ""
        if self._images:
            rate = self._images / max(step, 1e-9)
            return f"{rate:.{0 if rate >= 100 else 1}f} images/s"
        return f"{1 / max(step, 1e-9):.1f}/s" if step <= 1 else f"{step:.1f} s each"

    def _figures(self, done: int) -> dict[str, Any]:
        """Return the fields of an event ``progress``."""
        step, left = self._pace.step_seconds, self._pace.left
        rate = self._images / max(step, 1e-9) if self._images and step else None
        return {
            "what": self._what,
            "step": done,
            "total": self._total,
            "images_per_second": None if rate is None else round(rate, 2),
            "seconds_left": None if left is None else round(left, 1),
            **peak_memory(),
        }

    def _validated(self, what: str, step: int, **figures: Any) -> None:
        self._pace.validated(step, monotonic())
        curves = self._curves
        if curves:
            self._try("TensorBoard's files", lambda: curves.add(what, step, figures))

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        if self._lines is None:
            return
        if self._greeting:
            self._greeting = False
            self._append("session", _session())
        lines, seconds = self._lines, round(monotonic() - self._started, 3)
        event = {"event": kind, "seconds": seconds, **fields}
        self._try(str(self.path), lambda: lines.append(event))

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """Write, or say once that `name` cannot be written."""
        try:
            write()
        except OSError as error:
            if name in self._complained:
                return
            self._complained.add(name)
            reason = error.strerror or type(error).__name__
            text = f"the log cannot be written ({name}: {reason}); the run goes on"
            quiet, self.console.quiet = self.console.quiet, False
            self.say(escape(text))
            self.console.quiet = quiet


class _Left(ProgressColumn):
    """The time left, counted down between two estimates."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        text = "" if ends is None else f"{_span(max(0.0, ends - monotonic()))} left"
        return Text(text, style="progress.remaining")


def _bar(console: Console, *, live: bool) -> Progress:
    def text(name: str) -> TextColumn:
        return TextColumn(f"{{task.{name}}}", markup=False)

    def whole() -> Column:
        return Column(no_wrap=True)

    what = text("description")
    count, left = MofNCompleteColumn(table_column=whole()), _Left(whole())
    rest = (text("fields[memory]"), text("fields[detail]"))
    if console.width < NARROW:
        columns = (what, count, left)
    elif console.width < WIDE:
        columns = (SpinnerColumn(), what, count, text("fields[rate]"), left, *rest)
    else:
        bar = BarColumn(bar_width=24)
        columns = (SpinnerColumn(), what, bar, count, text("fields[rate]"), left, *rest)
    return Progress(*columns, console=console, transient=True, disable=not live)


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else str(timedelta(seconds=whole))


def _memory_text() -> str:
    units = {"memory_mb": "MB", "cuda_memory_mb": "MB CUDA"}
    return ", ".join(f"{n} {units[key]}" for key, n in peak_memory().items())


def _session() -> dict[str, Any]:
    """Return the fields of an event ``session``: date, process, versions."""
    versions = {"python": platform.python_version()}
    for package in ("metaensemble", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            versions[package] = "unknown"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": now, "pid": os.getpid(), "versions": versions}
