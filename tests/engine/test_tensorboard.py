import itertools
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog


@pytest.fixture(autouse=True)
def _seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one second have no order, and a session takes longer than that."""
    times = itertools.count(int(time.time()))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    if name not in read.Tags()["scalars"]:
        return []
    return [(one.step, round(one.value, 4)) for one in read.Scalars(name)]


def session(folder: Path, stage: str, done: int, steps: list[int], value: float):
    """Validate `stage` at `steps`, as `fit` does from step `done` on."""
    with RunLog(quiet=True, tensorboard=folder) as log:
        log.begin(stage, 100, done)
        for step in steps:
            figures = {"step": step, "accuracy": value, "loss_kd": 2 * value, "n": 3}
            log.event("validation", what=stage, **figures, name="x", good=True)


def test_a_stages_figures_and_losses_are_curves(tmp_path):
    with RunLog(quiet=True, tensorboard=tmp_path / "board") as log:
        for stage, end in (("member-0000", 0.7), ("student of a/b", 0.8)):
            log.begin(stage, 20)
            log.event("validation", what=stage, step=0, accuracy=0.1)
            log.event("validation", what=stage, step=20, accuracy=end, loss_kd=1.5)
            log.event("fitted", what=stage, steps=20)
            log.event("validation", what="another", step=20, accuracy=0.0)
    folder = tmp_path / "board"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["member-0000", "student of a_b"]
    assert points(folder / "member-0000", "accuracy") == [(0, 0.1), (20, 0.7)]
    assert points(folder / "member-0000", "loss_kd") == [(20, 1.5)]
    assert points(folder / "student of a_b", "accuracy") == [(0, 0.1), (20, 0.8)]


def test_only_numbers_are_curves(tmp_path):
    session(tmp_path, "kd", 0, [0], 0.5)
    read = EventAccumulator(str(tmp_path / "kd"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["accuracy", "loss_kd", "n"]


def test_points_are_there_while_the_run_goes_on(tmp_path):
    with RunLog(quiet=True, tensorboard=tmp_path) as log:
        log.begin("kd", 20)
        log.event("validation", what="kd", step=0, accuracy=0.1)
        assert points(tmp_path / "kd", "accuracy") == [(0, 0.1)]


def test_a_resumed_run_has_each_point_once(tmp_path):
    """The checkpoint was at step 20; the dead session had got to step 40."""
    session(tmp_path, "kd", 0, [0, 10, 20, 30, 40], 0.1)
    session(tmp_path, "kd", 20, [30, 40, 50], 0.2)
    first, then = [(step, 0.1) for step in (0, 10, 20)], [30, 40, 50]
    assert points(tmp_path / "kd", "accuracy") == [*first, *((s, 0.2) for s in then)]
    assert points(tmp_path / "kd", "loss_kd")[3:] == [(step, 0.4) for step in then]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path):
    session(tmp_path, "kd", 0, [0, 10], 0.1)
    session(tmp_path, "kd", 0, [0, 10, 20], 0.2)
    assert points(tmp_path / "kd", "accuracy") == [(0, 0.2), (10, 0.2), (20, 0.2)]


def test_other_stages_keep_their_points(tmp_path):
    session(tmp_path, "first", 0, [0, 50, 100], 0.1)
    session(tmp_path, "second", 0, [0, 50], 0.2)
    session(tmp_path, "second", 10, [50, 100], 0.3)
    assert [step for step, _ in points(tmp_path / "first", "accuracy")] == [0, 50, 100]
    assert points(tmp_path / "second", "accuracy") == [(0, 0.2), (50, 0.3), (100, 0.3)]


def test_without_the_package_one_sentence_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = (
        r"curves for TensorBoard need the package tensorboard, but it is not "
        r"installed; run: pip install 'metaensemble\[tensorboard\]'"
    )
    with pytest.raises(InputError, match=message):
        RunLog(tensorboard=tmp_path / "board")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "board").write_text("a file lies in the way")
    session(tmp_path / "board", "kd", 0, [0, 10], 0.1)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "the log cannot be written (TensorBoard's files: " in told[0]
    assert "; the run goes on" in told[0]
