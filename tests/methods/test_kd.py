import pytest
import torch
import torch.nn.functional as F

from metaensemble.methods import KD
from metaensemble.teachers import Ensemble

LABELS = [0, 1, 2, 3]


def test_equal_logits_leave_nothing_to_distil(student, batch, logits):
    z = logits(4, 5)
    losses = KD().learner(student(z), None)(batch(LABELS, z[None]))
    assert losses["distillation"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_constant_added_to_all_logits_changes_nothing(
    student, batch, logits, direction
):
    z, teachers = logits(4, 5), logits(2, 4, 5, seed=1)
    method = KD(direction=direction)
    plain = method.learner(student(z), None)(batch(LABELS, teachers))
    moved = method.learner(student(z + 3), None)(batch(LABELS, teachers - 7))
    assert torch.allclose(plain["distillation"], moved["distillation"], atol=1e-5)


def test_a_high_temperature_compares_centred_logits(student, batch, logits):
    # T^2 KL -> sum over classes of (centred difference)^2 / (2 classes)
    z, teacher = logits(4, 5), logits(4, 5, seed=1)
    losses = KD(temperature=60).learner(student(z), None)(batch(LABELS, teacher[None]))
    centred = (z - z.mean(-1, keepdim=True)) - (
        teacher - teacher.mean(-1, keepdim=True)
    )
    limit = centred.square().sum(-1).mean() / (2 * 5)
    assert losses["distillation"].item() == pytest.approx(limit.item(), rel=0.05)


def test_the_gradient_is_the_softened_difference(student, batch, logits):
    temperature, z, teacher = 3.0, logits(4, 5), logits(4, 5, seed=1)
    network = student(z)
    learner = KD(temperature=temperature).learner(network, None)
    learner(batch(LABELS, teacher[None]))["distillation"].backward()
    soft = (z / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    assert torch.allclose(network.logits.grad, temperature * soft / 4, atol=1e-6)


def test_the_reverse_direction_swaps_the_distributions(student, batch, logits):
    z, teacher = logits(4, 5), logits(4, 5, seed=1)
    forward = KD(direction="forward").learner(student(z), None)
    reverse = KD(direction="reverse").learner(student(teacher), None)
    one = forward(batch(LABELS, teacher[None]))["distillation"]
    two = reverse(batch(LABELS, z[None]))["distillation"]
    assert torch.allclose(one, two)


def test_weight_one_on_the_labels_is_their_cross_entropy(student, batch, logits):
    z = logits(4, 5)
    learner = KD(label_weight=1).learner(student(z), None)
    losses = learner(batch(LABELS, logits(1, 4, 5, seed=1)))
    assert losses["distillation"].item() == 0
    expected = F.cross_entropy(z, torch.tensor(LABELS))
    assert torch.allclose(sum(losses.values(), torch.tensor(0.0)), expected)


def test_weight_zero_on_the_labels_leaves_them_out(student, batch, logits):
    teachers = logits(1, 4, 5, seed=1)
    learner = KD(label_weight=0).learner(student(logits(4, 5)), None)
    one, two = learner(batch(LABELS, teachers)), learner(batch([3, 2, 1, 0], teachers))
    assert one.keys() == {"distillation"}
    assert torch.equal(one["distillation"], two["distillation"])


def test_unlabelled_images_count_for_distillation_only(student, batch, logits):
    z, teachers = logits(4, 5), logits(1, 4, 5, seed=1)
    learner = KD(label_weight=0.5).learner(student(z), None)
    losses = learner(batch([0, 1, -1, -1], teachers))
    expected = 0.5 * F.cross_entropy(z[:2], torch.tensor([0, 1]))
    assert torch.allclose(losses["label"], expected)
    labelled = learner(batch(LABELS, teachers))
    assert torch.equal(losses["distillation"], labelled["distillation"])


def test_one_teacher_is_hintons_loss(student, batch, logits):
    z, teacher, temperature = logits(4, 5), logits(4, 5, seed=1), 4.0
    learner = KD(temperature=temperature).learner(student(z), None)
    losses = learner(batch(LABELS, teacher[None]))
    target = (teacher / temperature).softmax(-1)
    log_student = (z / temperature).log_softmax(-1)
    crossed = -(target * log_student).sum(-1).mean()
    entropy = -(target * target.log()).sum(-1).mean()
    expected = temperature**2 * (crossed - entropy)
    assert torch.allclose(losses["distillation"], expected, rtol=1e-4)


def test_identical_teachers_are_one(student, batch, logits):
    z, teacher = logits(4, 5), logits(1, 4, 5, seed=1)
    learner = KD().learner(student(z), None)
    one = learner(batch(LABELS, teacher))
    three = learner(batch(LABELS, teacher.expand(3, 4, 5)))
    assert torch.allclose(one["distillation"], three["distillation"], rtol=1e-4)


def test_the_order_of_teachers_does_not_matter(student, batch, logits):
    teachers = logits(3, 4, 5, seed=1)
    learner = KD().learner(student(logits(4, 5)), None)
    one = learner(batch(LABELS, teachers))
    two = learner(batch(LABELS, teachers.flip(0)))
    assert torch.allclose(one["distillation"], two["distillation"])


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_target_is_averaged_as_the_ensemble_says(
    student, batch, logits, make_member, tmp_path, average
):
    members = (make_member(tmp_path / "a.safetensors", 0),)
    z, teachers, temperature = logits(4, 5), logits(3, 4, 5, seed=1), 2.0
    learner = KD(temperature=temperature).learner(
        student(z), Ensemble(members, average)
    )
    soft = teachers / temperature
    of_probabilities = soft.softmax(-1).mean(0).log()
    of_logits = soft.mean(0).log_softmax(-1)
    assert not torch.allclose(of_probabilities, of_logits, atol=1e-2)
    target = of_probabilities if average == "probabilities" else of_logits
    log_student = (z / temperature).log_softmax(-1)
    expected = temperature**2 * (target.exp() * (target - log_student)).sum(-1).mean()
    got = learner(batch(LABELS, teachers))["distillation"]
    assert torch.allclose(got, expected, rtol=1e-4)


def test_export_gives_the_student_itself(student, logits):
    network = student(logits(4, 5))
    assert KD().learner(network, None).export() is network
