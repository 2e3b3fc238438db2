"""bfloat16 and compilation, for the networks alone and for the training alone."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from metaensemble.engine import RunLog, fit
from metaensemble.engine.precision import running_as
from metaensemble.methods import KD, WeightFormerMethod
from metaensemble.models import init_model
from metaensemble.report import read_report


class Seen(nn.Module):
    """Remembers what its products were computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dtype: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        self.dtype = y.dtype
        return {"logits": y}


def test_networks_compute_in_bfloat16_and_give_float32(ensemble):
    network = Seen()
    learner = KD(precision="bfloat16").learner(network, ensemble)
    with running_as(KD(precision="bfloat16"), learner):
        logits = network(torch.ones(2, 4))["logits"]
        assert network.dtype == torch.bfloat16
        assert logits.dtype == torch.float32
        assert (logits @ logits.T).dtype == torch.float32  # outside: in full
        logits.sum().backward()
        assert network.linear.weight.grad is not None
        assert network.linear.weight.grad.dtype == torch.float32
    network(torch.ones(2, 4))
    assert network.dtype == torch.float32


def test_what_is_measured_is_measured_in_float32(ensemble):
    network = Seen()
    method = KD(precision="bfloat16")
    with running_as(method, method.learner(network, ensemble)):
        network.eval()(torch.ones(2, 4))
        assert network.dtype == torch.float32
        with torch.no_grad():  # statistics of batch norm are re-estimated so
            network.train()(torch.ones(2, 4))
        assert network.dtype == torch.float32


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"compile": True}])
def test_a_copy_computes_with_its_own_weights(ensemble, settings, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call: call)  # what counts is where
    network = Seen()
    method = KD(**settings)
    with running_as(method, method.learner(network, ensemble)):
        copied = copy.deepcopy(network)
        with torch.no_grad():
            copied.linear.weight.zero_()
            copied.linear.bias.fill_(2.0)
        for mode in (True, False):
            logits = copied.train(mode)(torch.ones(2, 4))["logits"]
            assert torch.equal(logits, torch.full((2, 3), 2.0))
            assert copied.dtype == torch.float32


def test_an_error_within_a_network_ends_its_precision(ensemble):
    learner = KD().learner(Seen(), ensemble)
    method = KD(precision="bfloat16")
    with running_as(method, learner), pytest.raises(RuntimeError):
        learner.student(torch.ones(2, 5))
    assert not torch.is_autocast_enabled("cpu")


def made(digits, ensemble, kind: str, **settings):
    torch.manual_seed(3)  # of the generator's own weights
    network = init_model("mlp,width=8", 10, digits.input_shape, 1)
    if kind == "kd":
        method = KD(epochs=2, selection="last", **settings)
    else:
        method = WeightFormerMethod(
            width=8, heads=1, depth=1, epochs=2, selection="last", **settings
        )
    return method, method.learner(network, ensemble)


def losses(digits, ensemble, batches, kind: str, **settings) -> list[float]:
    method, learner = made(digits, ensemble, kind, **settings)
    source = batches(ensemble)
    fitted = fit(
        learner,
        method,
        source,
        source.steps_per_epoch,
        seed=0,
        log=RunLog(quiet=True),
        what="a test",
        validate=lambda _: {"objective": 0.0},
    )
    assert all(p.dtype == torch.float32 for p in learner.parameters())
    assert learner.heavy()[0]._compiled_call_impl is None
    name = "loss_distillation" if kind == "kd" else "loss_divergence"
    return [float(row[name]) for row in fitted.history[1:]]


@pytest.mark.parametrize("kind", ["kd", "weightformer"])
def test_bfloat16_trains_nearly_alike(digits, ensemble, batches, kind):
    full = losses(digits, ensemble, batches, kind)
    low = losses(digits, ensemble, batches, kind, precision="bfloat16")
    assert low != full
    assert low == pytest.approx(full, rel=0.1)


COMMAND = """
from metaensemble.cli import main
import sys
sys.exit(main(sys.argv[1:]))
"""


METHODS = {
    "kd": ("--start", "scratch"),
    "latent_ensemble": ("--start", "scratch"),
    "weightformer": (
        "--width",
        "8",
        "--heads",
        "1",
        "--depth",
        "1",
        "--head",
        "direct",
    ),
}
"""The second and third export a network other than that which is trained."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_compiled_trains_alike(make_member, tmp_path, kind):
    """In a process of its own, without the type checks that compilers stumble over."""
    for seed in range(2):
        make_member(tmp_path / "zoo" / f"{seed}.safetensors", seed, "mlp,width=8")
    figures = []
    for flag in ([], ["--compile"]):
        out = tmp_path / f"run{len(flag)}"
        words = f"fuse {tmp_path}/zoo --data digits --limit-train 60 --epochs 8 --quiet"
        how = ["--method", kind, *METHODS[kind], "--batch-size", "16"]
        command = [sys.executable, "-c", COMMAND, *words.split(), *how, *flag]
        subprocess.run([*command, "--out", str(out)], check=True, timeout=600)
        report = read_report(out)
        figures += [(report.student.test.nll, report.fidelity.kl)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
