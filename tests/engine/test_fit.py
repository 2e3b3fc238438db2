import json
import math

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.engine import Checkpoints, RunLog, fit
from metaensemble.engine.fit import rate_at
from metaensemble.methods import KD, Batch, Learner, Supervised, WeightFormerMethod
from metaensemble.models import init_model


class Slope(Learner):
    """One weight w whose loss is w, so that a step of plain descent is the rate."""

    def __init__(self, losses: list[float] | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, 1))
        self.losses = losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        factor = self.losses[batch.step] if self.losses else 1.0
        return {"slope": factor * self.w.sum(), "rest": torch.tensor(0.0)}

    def export(self) -> nn.Module:
        return self


def blank(step: int) -> Batch:
    return Batch(step, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))


def run(learner: Slope, method: Supervised, objectives: list[float], **options):
    """Fit with 5 steps an epoch; validation gives the objectives one by one."""
    given = iter(objectives)
    seen: list[float] = []

    def validate(learner: Learner) -> dict[str, float]:
        assert isinstance(learner, Slope)
        assert not learner.training
        seen.append(learner.w.item())
        return {"objective": next(given, 9.0)}

    options = {"log": RunLog(quiet=True), **options}
    fitted = fit(
        learner, method, blank, 5, seed=0, what="slope", validate=validate, **options
    )
    return fitted, seen


def test_rates_by_hand():
    # 10 steps, 2 of them rising; the other 8 at the middles of 8 parts of a half wave
    rates = [rate_at(step, 10, 0.6, 0.2) for step in range(10)]
    assert rates[:2] == pytest.approx([0.2, 0.4])
    expected = [0.3 * (1 + math.cos(math.pi * (i + 0.5) / 8)) for i in range(8)]
    assert rates[2:] == pytest.approx(expected)
    assert all(rate > 0 for rate in rates)


def test_a_rate_without_warmup_falls_from_the_first_step():
    rates = [rate_at(step, 4, 1.0, 0.0) for step in range(4)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.5 * (1 + math.cos(math.pi / 8)))


def test_a_single_step_has_a_positive_rate():
    assert rate_at(0, 1, 1.0, 0.0) == pytest.approx(0.5)
    assert rate_at(0, 1, 1.0, 0.1) > 0


def test_steps_are_the_epochs_and_rates_are_used():
    learner = Slope()
    method = Supervised(epochs=0.6, learning_rate=0.1, weight_decay=0, clip=100)
    fitted, _ = run(learner, method, [])
    assert fitted.steps == 3
    velocity, w = 0.0, 0.0  # Nesterov momentum by hand
    for step in range(3):
        velocity = 0.9 * velocity + 1
        w -= rate_at(step, 3, 0.1, 0.1) * (1 + 0.9 * velocity)
    assert learner.w.item() == pytest.approx(w)


def test_the_gradient_is_clipped():
    method = Supervised(epochs=0.2, learning_rate=0.1, weight_decay=0, clip=0.5)
    clipped, plain = Slope(), Slope()
    run(clipped, method, [])
    run(plain, method.model_copy(update={"clip": 100.0}), [])
    assert clipped.w.item() == pytest.approx(plain.w.item() / 2)


def test_validation_begins_before_the_first_step_and_ends_with_the_last():
    fitted, seen = run(Slope(), Supervised(epochs=4), [])
    steps = [row["step"] for row in fitted.history]
    assert steps == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert seen[0] == 0
    assert "loss_slope" not in fitted.history[0]
    assert {"loss_slope", "loss_rest"} <= fitted.history[1].keys()


def test_few_steps_are_validated_once_each():
    fitted, _ = run(Slope(), Supervised(epochs=0.6), [])
    assert [row["step"] for row in fitted.history] == [0, 1, 2, 3]


def test_best_keeps_the_state_of_the_lowest_objective():
    learner = Slope()
    method = Supervised(epochs=1, selection="best")
    fitted, seen = run(learner, method, [5, 4, 1, 3, 1, 2])
    assert fitted.selected_step == 2  # the first of two equals
    assert learner.w.item() == seen[2]
    assert fitted.steps == 5


def test_best_may_be_the_state_before_training():
    learner = Slope()
    fitted, _ = run(learner, Supervised(epochs=1, selection="best"), [1, 2, 2, 2])
    assert fitted.selected_step == 0
    assert learner.w.item() == 0


def test_last_keeps_the_last_state():
    learner = Slope()
    fitted, seen = run(learner, Supervised(epochs=1, selection="last"), [1, 2, 2, 2])
    assert fitted.selected_step == 5
    assert learner.w.item() == seen[-1] != 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value):
    learner = Slope([1.0, 1.0, value, 1.0, 1.0])
    message = (
        r"the loss must stay finite, but in step 2 of slope, whose batch has the seed "
        r"0, it is not \(slope .*, rest 0\); lower --learning-rate or --clip"
    )
    with pytest.raises(InputError, match=message):
        run(learner, Supervised(epochs=1), [])


def test_events_tell_of_validations_and_of_the_end(tmp_path):
    path = tmp_path / "log.jsonl"
    run(Slope(), Supervised(epochs=0.4), [3, 2, 1], log=RunLog(path, quiet=True))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["event"] for row in rows] == ["validation"] * 3 + ["fitted"]
    assert [row["objective"] for row in rows[:3]] == [3, 2, 1]
    assert rows[-1]["steps"] == 2
    assert rows[-1]["selected_step"] == 2
    assert rows[-1]["train_seconds"] >= 0


def test_a_resume_is_told_and_time_adds_up(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", quiet=True)
    checkpoints = Checkpoints(tmp_path / "c.ckpt")
    options = {"checkpoints": checkpoints, "log": log}
    run(Slope(), Supervised(epochs=1), [], stop_after=2, **options)
    progress, _ = checkpoints.load()
    assert progress is not None
    assert progress.step == 2
    assert progress.seconds > 0
    fitted, _ = run(Slope(), Supervised(epochs=1), [], **options)
    assert fitted.steps == 5
    assert fitted.seconds > progress.seconds
    text = (tmp_path / "log.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in text]
    assert [e["step"] for e in events if e["event"] == "resume"] == [2]
    steps = [e["step"] for e in events if e["event"] == "validation"]
    assert steps == [0, 1, 2, 3, 4, 5]


def test_the_best_state_outlives_an_interruption(tmp_path):
    method = Supervised(epochs=1, selection="best")
    kept = {"checkpoints": Checkpoints(tmp_path / "c.ckpt")}
    _, seen = run(Slope(), method, [5, 1, 3], stop_after=2, **kept)
    learner = Slope()
    fitted, _ = run(learner, method, [4, 3, 2], **kept)
    assert fitted.selected_step == 1
    assert learner.w.item() == seen[1] != 0


def test_a_broken_checkpoint_is_refused(tmp_path):
    kept = {"checkpoints": Checkpoints(tmp_path / "c.ckpt")}
    run(Slope(), Supervised(epochs=1), [], stop_after=2, **kept)
    (path,) = kept["checkpoints"].files
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"must be whole .* delete it to start"):
        run(Slope(), Supervised(epochs=1), [], **kept)


def supervised(digits, ensemble):
    network = init_model("convnet,width=4", 10, digits.input_shape, 1)
    method = Supervised(epochs=3)
    return method, method.learner(network, None)


def kd(digits, ensemble):
    network = init_model("convnet,width=4", 10, digits.input_shape, 1)
    method = KD(epochs=3, label_weight=0.3, selection="last")
    return method, method.learner(network, ensemble)


def weightformer(digits, ensemble):
    torch.manual_seed(3)  # of the generator's own weights
    network = init_model("mlp,width=8", 10, digits.input_shape, 1)
    method = WeightFormerMethod(
        width=8, heads=1, depth=1, dropout=0.2, epochs=3, selection="last"
    )
    return method, method.learner(network, ensemble)


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("make", [supervised, kd, weightformer])
def test_an_interrupted_training_resumes_to_the_same_bits(
    digits, ensemble, batches, trained, make, stop
):
    method, whole = make(digits, ensemble)
    teachers = None if make is supervised else ensemble
    expected = trained(whole, method, batches(teachers))
    _, first = make(digits, ensemble)
    one, two = batches(teachers, cache="other"), batches(teachers, cache="other")
    left = trained(first, method, one, checkpoint="c.ckpt", stop_after=stop)
    _, second = make(digits, ensemble)
    with torch.no_grad():  # a resumed learner may start from anything
        for parameter in second.parameters():
            parameter.add_(1)
    got = trained(second, method, two, checkpoint="c.ckpt")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert any(not torch.equal(left[name], expected[name]) for name in expected)


def test_dropout_does_not_depend_on_what_is_cached(digits, ensemble, batches, trained):
    states = []
    for _ in range(2):  # a cold cache, which builds the teachers, then a warm one
        method, learner = weightformer(digits, ensemble)
        states.append(trained(learner, method, batches(ensemble)))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
