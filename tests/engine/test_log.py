import json

import pytest

from metaensemble.engine import RunLog, log


def test_events_are_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, quiet=True) as run:
        run.event("begin", what="zoo", count=3)
        run.event("end", figures={"accuracy": 0.5})
    with RunLog(path, quiet=True) as run:  # a resumed run goes on
        run.event("begin")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["event"] for row in rows] == ["begin", "end", "begin"]
    assert rows[0]["what"] == "zoo"
    assert rows[1]["figures"] == {"accuracy": 0.5}
    assert all(row["seconds"] >= 0 for row in rows)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunLog(quiet=True).event("begin")
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
