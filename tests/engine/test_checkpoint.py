"""When a training saves itself, what is kept, and what a broken file costs."""

import json
import signal
import time
from dataclasses import replace

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.engine import Checkpoints, RunLog, Saving, fit
from metaensemble.engine.checkpoint import SHARE, SPEED, Progress
from metaensemble.engine.interruption import stopping_gently
from metaensemble.methods import Batch, Supervised
from metaensemble.models import init_model


def saved(checkpoints: Checkpoints, *steps: int) -> list[str]:
    for step in steps:
        checkpoints.save(Progress(step=step))
    return [path.name for path in checkpoints.files]


def test_the_last_ones_are_kept_and_the_newest_comes_first(tmp_path):
    checkpoints = Checkpoints(tmp_path / ".kd.ckpt", Saving(keep=2))
    names = saved(checkpoints, 9, 10, 100)
    assert names == [".kd.00000100.ckpt", ".kd.00000010.ckpt"]
    (tmp_path / ".kd.best.ckpt").touch()  # not ours
    saved(Checkpoints(tmp_path / ".kd2.ckpt"), 7)
    assert [path.name for path in checkpoints.files] == names
    progress, wrong = checkpoints.load()
    assert progress is not None
    assert (progress.step, wrong) == (100, [])
    assert progress.threads == torch.get_num_threads()
    checkpoints.clear()
    assert checkpoints.files == []
    assert (tmp_path / ".kd2.00000007.ckpt").exists()
    assert checkpoints.load() == (None, [])


def test_a_broken_newest_one_costs_the_steps_since_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / ".kd.ckpt")
    saved(checkpoints, 10, 20)
    newest = checkpoints.files[0]
    newest.write_bytes(newest.read_bytes()[:-50])
    progress, wrong = checkpoints.load()
    assert progress is not None
    assert progress.step == 10
    assert len(wrong) == 1
    assert newest.name in wrong[0]
    checkpoints.files[1].write_bytes(b"")
    with pytest.raises(InputError, match=r"must be whole .*00000010.ckpt is not"):
        checkpoints.load()


@pytest.mark.parametrize(
    "values", [{"step": "5"}, {"learner": []}, {"speed": 3}, {"seconds": None}, [3]]
)
def test_a_checkpoint_of_other_things_is_refused(tmp_path, values):
    checkpoints = Checkpoints(tmp_path / ".kd.ckpt")
    torch.save(values, tmp_path / ".kd.00000005.ckpt")
    with pytest.raises(InputError, match=r"must be whole .* is not .Type"):
        checkpoints.load()


def test_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".kd.00000005.ckpt").mkdir()
    with pytest.raises(InputError, match=r"00000005.ckpt"):
        Checkpoints(tmp_path / ".kd.ckpt").load()


def test_steps_and_seconds_say_when(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    by_steps = Checkpoints(tmp_path / ".a.ckpt", Saving(steps=5))
    assert [step for step in range(1, 12) if by_steps.due(step)] == [5, 10]
    by_time = Checkpoints(tmp_path / ".b.ckpt", Saving(seconds=30.0))
    now[0] = 130.0
    assert not by_time.due(1)
    now[0] = 130.1
    assert by_time.due(1)


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(path, progress):
        path.touch()
        now[0] += 3.0

    monkeypatch.setattr("metaensemble.engine.checkpoint.save_progress", slow)
    checkpoints = Checkpoints(tmp_path / ".a.ckpt", Saving(seconds=10.0))
    checkpoints.save(Progress(step=1))
    now[0] += 3 / SHARE - 1
    assert not checkpoints.due(2)
    now[0] += 2
    assert checkpoints.due(2)


def test_the_first_save_of_a_large_network_waits(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path / ".a.ckpt", Saving(seconds=10.0))
    numbers = round(SPEED / 4 / 4)  # of four bytes, four times: a second
    checkpoints.expect(torch.nn.Linear(1, numbers, bias=False).to("meta"))
    now[0] = 1 / SHARE - 1
    assert not checkpoints.due(1)
    now[0] += 2
    assert checkpoints.due(1)


def trained(digits, tmp_path, batches, name: str, *, stop_at: int | None = None, **how):
    """Fit a small network; ask the process to stop in a step."""
    network = init_model("convnet,width=4", 10, digits.input_shape, 1)
    method = Supervised(epochs=3, selection="last")
    source = batches()

    def batch(step: int) -> Batch:
        if step == stop_at:
            signal.raise_signal(how.get("by", signal.SIGINT))
        return source(step)

    fit(
        method.learner(network, None),
        method,
        batch,
        source.steps_per_epoch,
        seed=0,
        log=RunLog(tmp_path / f"{name}.jsonl", quiet=True),
        what="kd",
        validate=None,
        checkpoints=Checkpoints(tmp_path / f".{name}.ckpt", Saving(steps=4)),
    )
    return network.state_dict()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_training_asked_to_stop_ends_its_step_and_goes_on_later(
    digits, tmp_path, batches, by
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = trained(digits, tmp_path, batches, "whole")
    with pytest.raises(KeyboardInterrupt, match="kd was saved after step 6"):
        trained(digits, tmp_path, batches, "part", stop_at=5, by=by)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    progress, _ = Checkpoints(tmp_path / ".part.ckpt").load()
    assert progress is not None
    assert progress.step == 6
    again = trained(digits, tmp_path, batches, "part")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    text = (tmp_path / "part.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["step"] for e in events if e["event"] == "interrupted"] == [6]
    assert [e["step"] for e in events if e["event"] == "resume"] == [6]


def test_a_second_request_stops_at_once():
    with stopping_gently() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_training_that_is_done_is_not_trained_again(digits, tmp_path, batches):
    first = trained(digits, tmp_path, batches, "part")
    seen: list[int] = []
    source = batches()

    def batch(step: int) -> Batch:
        seen.append(step)
        return source(step)

    again = trained(digits, tmp_path, lambda: replace_call(source, batch), "part")
    assert seen == []
    assert all(torch.equal(first[name], again[name]) for name in first)


def replace_call(source, batch):
    """Return batches that are made by another function."""

    class Other:
        steps_per_epoch = source.steps_per_epoch

        def __call__(self, step: int) -> Batch:
            return batch(step)

    return Other()


def test_another_number_of_threads_is_told(digits, tmp_path, batches, capsys):
    checkpoints = Checkpoints(tmp_path / ".part.ckpt")
    trained(digits, tmp_path, batches, "part")
    progress, _ = checkpoints.load()
    assert progress is not None
    other = replace(progress, threads=progress.threads + 1)
    torch.save(vars(other), checkpoints.files[0])
    log = RunLog(None)
    network = init_model("convnet,width=4", 10, digits.input_shape, 1)
    method = Supervised(epochs=3, selection="last")
    source = batches()
    fit(
        method.learner(network, None),
        method,
        source,
        source.steps_per_epoch,
        seed=0,
        log=log,
        what="kd",
        validate=None,
        checkpoints=checkpoints,
    )
    assert "its last bits may be others" in capsys.readouterr().err.replace("\n", " ")
