import io
import itertools
import json
import os
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from metaensemble.engine import RunLog, fit, log
from metaensemble.methods import Batch, Learner, Supervised


class Clock:
    """A time that only the test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal of 120 columns with colours."""
    screen = Terminal()
    monkeypatch.setattr(log, "Console", partial(Console, file=screen))
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def count(run: RunLog, clock: Clock, steps: int, seconds: float = 0.1) -> None:
    """Advance every ten steps, as `fit` does."""
    for step in range(steps):
        clock.now += seconds
        if step % 10 == 0 or step + 1 == steps:
            run.advance(step + 1, "loss 0.5")


def test_events_are_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, quiet=True) as run:
        run.event("begin", what="zoo", count=3)
        run.event("end", figures={"accuracy": 0.5})
    with RunLog(path, quiet=True) as run:  # a resumed run goes on
        run.event("begin")
    rows = read(path)
    kinds = [row["event"] for row in rows]
    assert kinds == ["session", "begin", "end", "session", "begin"]
    assert rows[1]["what"] == "zoo"
    assert rows[2]["figures"] == {"accuracy": 0.5}
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_session_tells_date_process_and_versions_once(tmp_path):
    path = tmp_path / "log.jsonl"
    before = datetime.now(UTC)
    with RunLog(path, quiet=True) as run:
        assert not path.exists()  # nothing happened yet
        run.event("begin")
        run.event("end")
    first, *rest = read(path)
    told = datetime.fromisoformat(first["time"])
    assert told.utcoffset() == before.utcoffset()
    assert abs((told - before).total_seconds()) < 5
    assert first["pid"] == os.getpid()
    assert first["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert set(first["versions"]) == {"metaensemble", "python", "torch"}
    assert not any("time" in row for row in rest)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunLog(quiet=True) as run:
        run.event("begin")
    assert not list(tmp_path.iterdir())


def test_quiet_says_nothing(capsys):
    with RunLog(quiet=True) as run:
        run.begin("zoo", 10)
        run.advance(5, "half")
        run.say("done")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_standard_error_at_intervals(
    capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log, "PLAIN_INTERVAL", 0.0)
    with RunLog() as run:
        run.begin("zoo", 10)
        run.advance(5, "half")
        run.say("done")
    out, err = capsys.readouterr()
    assert out == ""
    assert "zoo: 5/10, " in err
    assert "s left half" in err
    assert "done" in err


def test_between_intervals_it_is_silent(capsys):
    with RunLog() as run:
        run.begin("zoo", 10)
        run.advance(5)
    assert capsys.readouterr().err == ""


def test_plain_lines_come_every_ten_seconds_without_control_characters(
    capsys, clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log, "peak_memory", lambda: {"memory_mb": 345})
    monkeypatch.setenv("COLUMNS", "20")  # which no pipe has
    with RunLog() as run:
        run.begin("[red]zoo[/]", 1000, images=32)
        count(run, clock, 1000)
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert 9 <= len(lines) <= 10
    assert lines[0] == "[red]zoo[/]: 101/1000, 320 images/s, 345 MB, 90 s left loss 0.5"
    assert err.replace("\n", "").isprintable()


def test_a_dumb_terminal_gets_plain_lines(terminal, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with RunLog() as run:
        run.begin("zoo", 1000)
        count(run, clock, 150)
    assert terminal.getvalue().startswith("zoo: 101/1000, 10.0/s, ")
    assert terminal.getvalue().replace("\n", "").isprintable()


def shown(run: RunLog, clock: Clock, terminal: Terminal, images: int | None) -> str:
    """Return the bar as it stands after 500 of 12,000 steps."""
    with run:
        run.begin("member-0000", 12000, images=images)
        count(run, clock, 500)
        terminal.truncate(0)
        run._progress.refresh()
        return terminal.getvalue()


@pytest.mark.parametrize(
    ("columns", "there", "absent"),
    [
        ("120", ["━", "500/12000", "640 images/s", "0:19:10 left", "45 MB", "0.5"], []),
        ("80", ["500/12000", "640 images/s", "left", "45 MB", "loss 0.5"], ["━"]),
        ("40", ["member-0000", "500/12000", "left"], ["━", "images", "MB", "loss"]),
        ("12", [], ["━", "images", "MB", "loss"]),
    ],
)
def test_the_bar_fits_the_terminal(
    terminal, clock, monkeypatch, columns, there, absent
):
    monkeypatch.setattr(log, "peak_memory", lambda: {"memory_mb": 45})
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(RunLog(), clock, terminal, 64)
    assert all(word in text for word in there)
    assert not any(word in text for word in absent)
    bar = text.split("\r")[-1]
    plain = "".join(c for c in bar if c.isprintable() or c == "\n")
    assert all(len(line) <= int(columns) + 8 for line in plain.splitlines())


def test_no_color_is_respected(terminal, clock, monkeypatch):
    assert "\x1b[3" in shown(RunLog(), clock, terminal, None)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(RunLog(), clock, terminal, None)


def test_the_time_left_counts_down_between_steps(terminal, clock):
    with RunLog() as run:
        run.begin("zoo", 1000)
        count(run, clock, 501)
        run._progress.refresh()
        assert "50 s left" in terminal.getvalue().rsplit("\r", 1)[-1]
        clock.now += 20  # a validation takes its time
        run._progress.refresh()
        assert "30 s left" in terminal.getvalue().rsplit("\r", 1)[-1]


def test_quiet_on_a_terminal_shows_nothing(terminal, clock):
    assert shown(RunLog(quiet=True), clock, terminal, None) == ""
    assert terminal.getvalue() == ""


def test_progress_events_come_every_ten_seconds(tmp_path, clock):
    path = tmp_path / "log.jsonl"
    with RunLog(path, quiet=True) as run:
        for what in ("first", "second"):
            run.begin(what, 1000, images=32)
            count(run, clock, 1000)
    rows = [row for row in read(path) if row["event"] == "progress"]
    assert len(rows) in (18, 19)
    assert [row["what"] for row in rows][::17] == ["first", "second"]
    gaps = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(rows)]
    assert min(gaps) >= 10
    for row in rows:
        assert row["total"] == 1000
        assert row["images_per_second"] == pytest.approx(320, rel=1e-3)
        assert row["seconds_left"] == pytest.approx((1000 - row["step"]) / 10, abs=0.1)
        assert row["memory_mb"] > 20


def test_a_resumed_stage_counts_the_validations_to_come(tmp_path, clock):
    with RunLog(tmp_path / "log.jsonl", quiet=True) as run:
        run.begin("kd", 1000, 450, validation=40.0)
        for step in (451, 461):
            clock.now += step - 450
            run.advance(step)
    row = read(tmp_path / "log.jsonl")[-1]
    assert row["step"] == 461
    assert row["seconds_left"] == pytest.approx(539 * 12 / 11 + 6 * 40, abs=1)


def test_a_stage_without_images_has_no_rate_of_images(tmp_path, clock):
    with RunLog(tmp_path / "log.jsonl", quiet=True) as run:
        run.begin("teachers' outputs", 6)
        clock.now += 30
        run.advance(1)
    row = read(tmp_path / "log.jsonl")[-1]
    assert row["images_per_second"] is None
    assert row["seconds_left"] == 150


def test_the_log_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, quiet=True) as run:
        for n in range(3):
            run.event("validation", what="elsewhere", step=n)
            assert read(path)[-1]["step"] == n


def test_a_torn_line_of_a_killed_session_is_replaced(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "begin", "seconds": 0.1}\n{"event": "val')
    with RunLog(path, quiet=True) as run:
        run.event("resume")
    assert [row["event"] for row in read(path)] == ["begin", "session", "resume"]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys, quiet):
    folder = tmp_path / "[b]run"
    folder.mkdir()
    path = folder / "log.jsonl"
    with RunLog(path, quiet=quiet) as run:
        run.event("begin")
        shutil.rmtree(folder)
        run.event("lost")
        run.event("lost, too")
        folder.mkdir()
        run.event("again")
        run.say("") if quiet else None
    assert [row["event"] for row in read(path)] == ["again"]
    assert capsys.readouterr().err == (
        f"the log cannot be written ({path}: No such file or directory); "
        "the run goes on\n"
    )


class Slow(Learner):
    """A learner whose steps take a second, the first one a hundred."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.w, self.clock = nn.Parameter(torch.zeros(1, 1)), clock

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.clock.now += 100.0 if batch.step == 0 else 1.0
        return {"slope": self.w.sum()}

    def export(self) -> nn.Module:
        return self


def test_the_time_left_of_a_training_is_within_a_fifth_after_a_tenth(tmp_path, clock):
    """`fit` as it is, validations as long as 40 steps: what was logged came."""
    path = tmp_path / "log.jsonl"

    def batch(step: int) -> Batch:
        return Batch(step, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))

    def validate(learner: Learner) -> dict[str, float]:
        clock.now += 40
        return {"objective": 1.0}

    method = Supervised(epochs=1, batch_size=16)
    with RunLog(path, quiet=True) as run:
        options = {"seed": 0, "log": run, "what": "zoo", "validate": validate}
        fit(Slow(clock), method, batch, 200, **options)
    *rows, end = read(path)
    assert end["event"] == "fitted"
    told = [row for row in rows if row["event"] == "progress" and row["step"] >= 20]
    assert len(told) > 15
    for row in told:
        truth = end["seconds"] - row["seconds"]
        assert row["seconds_left"] == pytest.approx(truth, rel=0.02)
        assert row["images_per_second"] == pytest.approx(16)
