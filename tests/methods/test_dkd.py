import pytest
import torch
import torch.nn.functional as F

from metaensemble.core.errors import InputError
from metaensemble.methods import DKD, KD, Batch, Task
from metaensemble.methods.distillation import tempered_kl
from metaensemble.methods.dkd import decoupled_kl
from metaensemble.teachers import Ensemble

LABELS = torch.tensor([0, 1, 2, 3])


@pytest.fixture(scope="module")
def ensemble(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkd")
    return Ensemble(tuple(make_member(folder / f"{i}.safetensors", i) for i in "0"))


def learner_of(method, student, ensemble, steps=10):
    labels = torch.zeros(method.batch_size * steps, dtype=torch.long)
    task = Task((1, 8, 8), labels)
    (stage,) = method.stages(student, ensemble, task)
    return stage.learner


@pytest.mark.parametrize("name", ["kd", "kd_mdistiller"])
def test_hintons_loss_is_that_of_the_references(student, batch, golden, name):
    known = golden(name)
    network = student(torch.tensor(known["student"]))
    teachers = torch.tensor([known["teacher"]])
    learner = KD(temperature=known["temperature"]).learner(network, None)
    loss = learner(batch(known["labels"], teachers))["distillation"]
    loss.backward()
    assert loss.item() == pytest.approx(known["loss"], rel=1e-5)
    torch.testing.assert_close(network.logits.grad, torch.tensor(known["gradient"]))


def test_value_and_gradient_are_those_of_mdistiller(student, batch, golden, ensemble):
    known = golden("dkd")
    network = student(torch.tensor(known["student"]))
    method = DKD(temperature=known["temperature"], alpha=1, beta=8, ramp=0)
    losses = learner_of(method, network, ensemble)(
        batch(known["labels"], torch.tensor([known["teacher"]]))
    )
    loss = losses["labelled_class"] + losses["other_classes"]
    loss.backward()
    assert loss.item() == pytest.approx(known["loss"], rel=1e-5)
    gradient = torch.tensor(known["gradient"])
    torch.testing.assert_close(network.logits.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_parts_add_up_to_hintons_loss(logits):
    # T^2 KL = TCKD + (1 - q_t[y]) NCKD, image by image
    z, temperature = logits(4, 5), 3.0
    target = (logits(4, 5, seed=1) / temperature).log_softmax(-1)
    own, others = decoupled_kl(target, z, LABELS, temperature)
    rest = 1 - target.exp().gather(1, LABELS[:, None])[:, 0]
    whole = torch.stack(
        [tempered_kl(target[i : i + 1], z[i : i + 1], temperature) for i in range(4)]
    )
    torch.testing.assert_close(own + rest * others, whole)


def test_the_other_classes_do_not_see_the_labelled_one(logits):
    z, teacher = logits(4, 5), logits(4, 5, seed=1)
    moved = F.one_hot(LABELS, 5) * 3.0
    _, plain = decoupled_kl(teacher.log_softmax(-1), z, LABELS, 1.0)
    _, student = decoupled_kl(teacher.log_softmax(-1), z + moved, LABELS, 1.0)
    _, both = decoupled_kl((teacher - moved).log_softmax(-1), z + moved, LABELS, 1.0)
    torch.testing.assert_close(plain, student)
    torch.testing.assert_close(plain, both)


def test_equal_logits_leave_nothing_to_distil(logits):
    z = logits(4, 5)
    own, others = decoupled_kl(z.log_softmax(-1), z, LABELS, 1.0)
    assert own.abs().max() < 1e-6
    assert others.abs().max() < 1e-6


def test_certain_networks_give_finite_losses_and_gradients():
    z = (1e4 * F.one_hot(LABELS, 5).float()).requires_grad_()
    teacher = 1e4 * F.one_hot(LABELS.flip(0), 5).float()
    own, others = decoupled_kl(teacher.log_softmax(-1), z, LABELS, 1.0)
    (own + others).sum().backward()
    assert torch.isfinite(own).all()
    assert torch.isfinite(others).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_identical_teachers_are_one(student, batch, logits, ensemble):
    learner = learner_of(DKD(), student(logits(4, 5)), ensemble)
    teacher = logits(1, 4, 5, seed=1)
    one = learner(batch(LABELS.tolist(), teacher))
    three = learner(batch(LABELS.tolist(), teacher.expand(3, 4, 5)))
    for name, value in one.items():
        torch.testing.assert_close(value, three[name], rtol=1e-4, atol=1e-6)


def test_unknown_labels_are_the_ensembles_first_class(student, batch, logits, ensemble):
    z, teacher = logits(4, 5), logits(1, 4, 5, seed=1)
    learner = learner_of(DKD(), student(z), ensemble)
    unknown = learner(batch([-1] * 4, teacher))
    known = learner(batch(teacher[0].argmax(-1).tolist(), teacher))
    assert unknown["label"].item() == 0
    for name in ("labelled_class", "other_classes"):
        assert torch.equal(unknown[name], known[name])


def test_the_weight_rises_linearly_over_the_ramp(student, logits, ensemble):
    # 10 steps an epoch and 2 epochs; a quarter of 20 steps is 5
    method = DKD(epochs=2, ramp=0.25, batch_size=4)
    learner = learner_of(method, student(logits(4, 5)), ensemble)
    values = [
        learner(Batch(step, torch.zeros(4, 1, 8, 8), LABELS, logits(1, 4, 5, seed=1)))
        for step in range(7)
    ]
    whole = values[-1]
    for step, value in enumerate(values):
        share = min((step + 1) / 5, 1.0)
        for name in ("labelled_class", "other_classes"):
            assert value[name].item() == pytest.approx(share * whole[name].item())
        assert torch.equal(value["label"], whole["label"])


def test_labels_count_on_the_images_before_a_perturbation(logits, ensemble):
    class Sums(torch.nn.Module):
        def forward(self, inputs):
            return inputs.sum((1, 2, 3))[:, None] * torch.arange(5.0)

    clean = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 64
    batch = Batch(0, clean + 1, LABELS, logits(1, 4, 5), clean=clean)
    losses = learner_of(DKD(), Sums(), ensemble)(batch)
    expected = F.cross_entropy(Sums()(clean), LABELS)
    torch.testing.assert_close(losses["label"], expected)


def test_two_classes_are_refused(make_member, tmp_path, student, logits):
    member = make_member(tmp_path / "a.safetensors", 0)
    info = member.info.model_copy(update={"classes": ("no", "yes")})
    object.__setattr__(member, "info", info)
    with pytest.raises(
        InputError, match=r"dkd must have at least 3 classes, .* there are 2; choose"
    ):
        learner_of(DKD(), student(logits(4, 2)), Ensemble((member,)))
