import pytest
import torch

from metaensemble.methods import Meal, MealV2, Task
from metaensemble.methods.discriminator import Discriminator
from metaensemble.methods.meal import MealLearner
from metaensemble.teachers import Ensemble

LABELS = [0, 1, 2, 3]


@pytest.fixture
def ensemble(make_member, tmp_path) -> Ensemble:
    """Three members; their logits come with the batches."""
    return Ensemble(
        tuple(make_member(tmp_path / f"{i}.safetensors", i) for i in range(3))
    )


def test_the_target_is_the_mean_of_probabilities(student, batch, logits, ensemble):
    z, teachers = logits(4, 10), logits(3, 4, 10, seed=1)
    soft = teachers.softmax(-1).mean(0)
    assert torch.allclose(ensemble.log_probs(teachers).exp(), soft, atol=1e-6)
    assert torch.allclose(soft.sum(-1), torch.ones(4))
    network = student(z)
    losses = MealV2(adversary="none").learner(network, ensemble)(
        batch(LABELS, teachers)
    )
    expected = (soft * (soft.log() - z.log_softmax(-1))).sum(-1).mean()
    assert torch.allclose(losses["distillation"], expected, rtol=1e-4)
    losses["distillation"].backward()
    # the gradient of the cross-entropy with soft labels
    assert torch.allclose(network.logits.grad, (z.softmax(-1) - soft) / 4, atol=1e-6)


def test_random_teachers_agree_with_their_mean_on_average(
    student, batch, digits, ensemble
):
    pixels = digits.train.images[:4]
    inputs = digits.normalization(pixels)
    with torch.no_grad():
        teachers = torch.stack([m.network()(inputs) for m in ensemble.members])
    grads = []
    for member in ensemble.members:  # as if each had been drawn once
        network = ensemble.members[0].network()
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        method = Meal(gammas=(0, 1), adversary="none")
        task = Task(digits.input_shape, digits.train.labels)
        learner = MealLearner(method, network, Ensemble((member,)), task)
        seen = batch(LABELS)
        seen = type(seen)(0, inputs, seen.labels, pixels=pixels)
        learner(seen)["similarity"].backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    network = ensemble.members[0].network()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    learner = MealV2(adversary="none").learner(network, ensemble)
    seen = batch(LABELS, teachers)
    learner(type(seen)(0, inputs, seen.labels, teachers))["distillation"].backward()
    for parameter, *each in zip(network.parameters(), *grads, strict=True):
        mean = torch.stack(each).mean(0)
        assert torch.allclose(parameter.grad, mean, atol=1e-6)


def test_the_discriminator_sees_the_mean_of_logits(student, batch, logits, ensemble):
    z, teachers = logits(4, 10), logits(3, 4, 10, seed=1)
    weighted = Ensemble(ensemble.members, weights=(0.5, 0.25, 0.25))
    learner = MealV2(eta=0.5).learner(student(z), weighted)
    got = learner(batch(LABELS, teachers))["discriminator"]
    mean = 0.5 * teachers[0] + 0.25 * teachers[1] + 0.25 * teachers[2]
    judge = learner.discriminator
    assert isinstance(judge, Discriminator)
    assert torch.allclose(got, 0.5 * judge.loss(z, mean, "none"))


def test_the_adversary_turns_the_students_gradient_and_no_other(
    student, batch, logits, ensemble
):
    z, teachers = logits(4, 10), logits(3, 4, 10, seed=1)
    found = []
    for adversary in ("reversal", "cooperative"):
        torch.manual_seed(0)
        learner = MealV2(adversary=adversary).learner(student(z), ensemble)
        learner(batch(LABELS, teachers))["discriminator"].backward()
        found.append(learner)
    against, along = found
    assert float(along.student.logits.grad.abs().sum()) > 0
    assert torch.equal(against.student.logits.grad, -along.student.logits.grad)
    judges = against.discriminator.parameters(), along.discriminator.parameters()
    for p, q in zip(*judges, strict=True):
        assert torch.equal(p.grad, q.grad)


def test_labels_play_no_part(student, batch, logits, ensemble):
    teachers = logits(3, 4, 10, seed=1)
    learner = MealV2().learner(student(logits(4, 10)), ensemble)
    one = learner(batch(LABELS, teachers))
    other = learner(batch([3, 2, -1, 0], teachers))
    assert one.keys() == {"distillation", "discriminator"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_identical_teachers_are_one(student, batch, logits, ensemble):
    z, teacher = logits(4, 10), logits(1, 4, 10, seed=1)
    losses = []
    for members, seen in ((ensemble.members[:1], 1), (ensemble.members, 3)):
        torch.manual_seed(0)
        learner = MealV2().learner(student(z), Ensemble(members))
        losses.append(learner(batch(LABELS, teacher.expand(seen, 4, 10))))
    for name in losses[0]:
        assert torch.allclose(losses[0][name], losses[1][name], rtol=1e-4)


@pytest.mark.parametrize("fields", [{"adversary": "none"}, {"eta": 0}])
def test_without_an_adversary_there_is_no_discriminator(
    student, batch, logits, ensemble, fields
):
    learner = MealV2(**fields).learner(student(logits(4, 10)), ensemble)
    losses = learner(batch(LABELS, logits(3, 4, 10, seed=1)))
    assert losses.keys() == {"distillation"}
    assert set(learner.state_dict()) == {"student.logits"}


def test_the_discriminator_is_saved_and_not_exported(student, logits, ensemble):
    network = student(logits(4, 10))
    learner = MealV2().learner(network, ensemble)
    assert any(name.startswith("discriminator.") for name in learner.state_dict())
    assert learner.export() is network


def test_weights_do_not_decay():
    assert MealV2().weight_decay == 0
