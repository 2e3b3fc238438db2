"""What a run tells while it runs: ``log.jsonl`` always, progress on the terminal."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where the output is no terminal."""


class RunLog:
    """Appends events to a file as JSON lines and shows progress on standard error.

    On a terminal progress is a live bar with the rate and the time left; elsewhere a
    line every ten seconds. Use as a context manager.

    Args:
        path: the log file; None writes none.
        quiet: show nothing.
    """

    def __init__(self, path: Path | None = None, *, quiet: bool = False):
        self.path = path
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._live = self.console.is_terminal and not quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._what = ""
        self._total = 1
        self._first = 0
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event: its kind, seconds since the start, and the fields."""
        if self.path is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = json.dumps({"event": kind, "seconds": seconds, **fields})
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    def say(self, text: str) -> None:
        """Show one line and keep it."""
        self._progress.console.print(text, highlight=False)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start to show the progress of `what`, `total` steps, `done` of them done."""
        self._what, self._total, self._first = what, max(1, total), done
        self._began = self._printed = time.monotonic()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            what, total=total, completed=done, detail=""
        )

    def advance(self, done: int, detail: str = "") -> None:
        """Show that `done` steps are done; `detail` is a short text beside the bar."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._began, 1e-9)
        if self._live and self._task is not None:
            text = f"{_pace(rate)} {detail}"
            self._progress.update(self._task, completed=done, detail=text)
        elif now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            left = (self._total - done) / max(rate, 1e-9)
            self.say(
                f"{self._what}: {done}/{self._total}, {_pace(rate)}, "
                f"{left:.0f} s left {detail}"
            )


def _pace(rate: float) -> str:
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s each"
