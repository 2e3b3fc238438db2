import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Dirichlet

from metaensemble.core.seeds import generator
from metaensemble.methods import EnsembleDistribution, Learner, Task
from metaensemble.methods.ensemble_distribution import (
    LARGEST,
    dirichlet_nll,
    smoothed,
)
from metaensemble.metrics import dirichlet_uncertainty
from metaensemble.teachers import Ensemble

LABELS = [0, 1, 2, 3]


@pytest.fixture
def three(make_member, tmp_path) -> Ensemble:
    """Three members, whose weights matter here and nothing else."""
    files = (make_member(tmp_path / f"{seed}.safetensors", seed) for seed in range(3))
    return Ensemble(tuple(files))


def learner_of(
    network: nn.Module, teachers: Ensemble, steps: int = 10, **fields: float
) -> Learner:
    method = EnsembleDistribution.model_validate(
        {"epochs": steps, "batch_size": 4, **fields}
    )
    task = Task((1, 8, 8), torch.tensor(LABELS))
    (stage,) = method.stages(network, teachers, task)
    assert stage.settings is method
    return stage.learner


def density(alpha: Tensor, members: Tensor) -> Tensor:
    """The mean of -log Dir, by torch's own Dirichlet."""
    return -Dirichlet(alpha.double()).log_prob(members.double()).mean()


def test_the_loss_is_the_likelihood_under_a_dirichlet(student, batch, logits, three):
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    learner = learner_of(student(z), three, temperature=1.0)
    members = smoothed(teachers.double().softmax(-1), 1e-4)
    found = learner(batch(LABELS, teachers))["distribution"]
    torch.testing.assert_close(found, density(z.exp(), members).float())
    members = smoothed((teachers / 10).double().softmax(-1), 1e-4)
    warm = learner_of(student(z), three)(batch(LABELS, teachers))["distribution"]
    torch.testing.assert_close(warm, density((z / 10).exp(), members).float())


def test_members_weigh_as_the_ensemble_says(student, batch, logits, three):
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    weighted = three.weighted([0.5, 0.3, 0.2])
    found = learner_of(student(z), weighted)(batch(LABELS, teachers))["distribution"]
    each = [
        learner_of(student(z), three.subset([i]))(batch(LABELS, teachers[[i]]))[
            "distribution"
        ]
        for i in range(3)
    ]
    torch.testing.assert_close(found, 0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2])


def test_the_gradient_is_that_of_the_density():
    z = torch.randn(4, 5, generator=generator("z")).double().requires_grad_()
    members = torch.randn(3, 4, 5, generator=generator("members")).double().softmax(-1)
    (found,) = torch.autograd.grad(dirichlet_nll(z, members.log().mean(0)), z)
    (expected,) = torch.autograd.grad(density(z.exp(), members), z)
    torch.testing.assert_close(found, expected)


def test_members_drawn_from_a_dirichlet_are_fitted_by_it():
    truth = torch.tensor([4.0, 1.0, 0.5, 8.0])
    torch.manual_seed(0)
    drawn = Dirichlet(truth).sample(torch.Size([4000]))
    target = drawn.clamp_min(1e-30).log().double().mean(0)[None]
    z = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = dirichlet_nll(z, target)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    torch.testing.assert_close(z.detach().exp()[0], truth.double(), rtol=0.1, atol=0)
    at_truth = dirichlet_nll(truth.double().log()[None], target)
    for factor in (0.5, 2.0):
        other = dirichlet_nll((factor * truth.double()).log()[None], target)
        assert at_truth < other


def test_identical_members_drive_the_concentration_up(batch, student, logits, three):
    one = logits(1, 4, 5, seed=1).clamp(-2, 2)
    right = one[0].softmax(-1).log()
    losses = [
        learner_of(student(right + scale), three, temperature=1.0)(
            batch(LABELS, one.expand(3, 4, 5))
        )["distribution"].item()
        for scale in (0.0, 2.0, 4.0, 8.0, 12.0)
    ]
    assert losses == sorted(losses, reverse=True)
    apart = logits(3, 4, 5, seed=1)  # members that differ bound it
    right = apart.softmax(-1).mean(0).log()
    losses = [
        learner_of(student(right + scale), three, temperature=1.0)(
            batch(LABELS, apart)
        )["distribution"].item()
        for scale in (2.0, 8.0, 12.0)
    ]
    assert losses[0] < losses[1] < losses[2]


def test_a_member_that_is_certain_stays_finite(student, batch, logits, three):
    certain = torch.zeros(3, 4, 5)
    certain[:, :, 0] = 500.0
    network = student(logits(4, 5))
    learner = learner_of(network, three, temperature=1.0)
    loss = learner(batch(LABELS, certain))["distribution"]
    loss.backward()
    assert loss.isfinite()
    assert network.logits.grad.isfinite().all()
    bare = certain.softmax(-1).log().mean(0)  # why members are smoothed
    assert not dirichlet_nll(logits(4, 5), bare).isfinite()


@pytest.mark.parametrize("size", [-300.0, -60.0, 30.0, 80.0, 1000.0])
def test_extreme_logits_have_a_finite_loss_and_gradient(size: float):
    z = torch.tensor([[size, 0.0, -1.0]], requires_grad=True)
    loss = dirichlet_nll(z, torch.tensor([[0.2, 0.3, 0.5]]).log())
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad[0, 0] * math.copysign(1, size) > 0  # back to where there is a density


def test_the_bound_on_the_concentration_has_no_kink():
    target = torch.tensor([[0.2, 0.3, 0.5]]).double().log()

    def slope(at: float) -> float:
        z = torch.tensor([[at, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(dirichlet_nll(z, target), z)
        return gradient[0, 0].item()

    below, above = slope(LARGEST - 1e-6), slope(LARGEST + 1e-6)
    assert above == pytest.approx(below, rel=1e-4)


def test_the_temperature_falls_to_one_and_stays():
    method = EnsembleDistribution(temperature=10, anneal=0.5)
    falling = [method.temperature_at(step, 20) for step in range(20)]
    assert falling[0] == 10
    assert falling[5] == pytest.approx(5.5)
    assert falling[10:] == [1.0] * 10
    assert falling[:10] == sorted(falling[:10], reverse=True)
    assert EnsembleDistribution(anneal=0).temperature_at(0, 20) == 1
    assert EnsembleDistribution(anneal=1).temperature_at(19, 20) > 1


def test_the_step_sets_the_temperature(student, batch, logits, three):
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    learner = learner_of(student(z), three, steps=10)
    brought = batch(LABELS, teachers)
    late = type(brought)(5, brought.inputs, brought.labels, teachers)
    cold = learner_of(student(z), three, temperature=1.0)(brought)["distribution"]
    assert torch.equal(learner(late)["distribution"], cold)
    assert not torch.equal(learner(brought)["distribution"], cold)


def test_the_mean_prediction_is_the_softmax_of_the_logits(logits):
    z = logits(4, 5)
    mean = Dirichlet(z.exp()).mean
    torch.testing.assert_close(mean, z.softmax(-1))
    torch.testing.assert_close(mean.sum(-1), torch.ones(4))


def test_members_that_differ_leave_a_lack_of_knowledge(student, batch, logits, three):
    # trained on four images: on two the members agree, on two they do not
    teachers = logits(3, 4, 5, seed=1)
    teachers[:, :2] = teachers[:1, :2]
    network = student(logits(4, 5))
    learner = learner_of(network, three, temperature=1.0)
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        learner(batch(LABELS, teachers))["distribution"].backward()
        optimizer.step()
    found = dirichlet_uncertainty(network.logits.detach())
    assert found.knowledge[:2].max() < 0.01
    assert found.knowledge[2:].min() > 0.03


def test_smoothing_keeps_probabilities():
    sure = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(smoothed(sure, 0.1), expected)


def test_export_gives_the_student_itself(student, logits, three):
    network = student(logits(4, 5))
    assert learner_of(network, three).export() is network


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.5}, {"smoothing": 0.0}, {"anneal": 1.5}]
)
def test_values_out_of_range(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        EnsembleDistribution.model_validate(fields)
