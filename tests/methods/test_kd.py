from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metaensemble.core.errors import InputError
from metaensemble.data import batch_indices
from metaensemble.engine import RunLog
from metaensemble.engine.fit import rate_at
from metaensemble.methods import KD, Batch
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.students import distil_student

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


@pytest.fixture
def three(make_member, tmp_path) -> Ensemble:
    """Three members, whose weights matter here and nothing else."""
    files = (make_member(tmp_path / f"{seed}.safetensors", seed) for seed in range(3))
    return Ensemble(tuple(files))


def test_each_is_the_mean_of_the_losses_to_each(student, batch, logits, three):
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    for direction in ("forward", "reverse"):
        method = KD(target="each", direction=direction)
        together = method.learner(student(z), three)(batch(LABELS, teachers))
        alone = [
            method.learner(student(z), None)(batch(LABELS, teachers[[i]]))
            for i in range(3)
        ]
        mean = torch.stack([losses["distillation"] for losses in alone]).mean()
        assert torch.allclose(together["distillation"], mean, rtol=1e-5)
        nobody = method.learner(student(z), None)(batch(LABELS, teachers))
        assert torch.allclose(nobody["distillation"], mean, rtol=1e-5)


def gradient(method: KD, network, teachers: Ensemble, batch: Batch) -> torch.Tensor:
    losses = method.learner(network, teachers)(batch)
    return torch.autograd.grad(losses["distillation"], network.logits)[0]


def test_forward_each_has_the_gradient_of_the_mean_of_probabilities(
    student, batch, logits, three
):
    network, brought = student(logits(4, 5)), batch(LABELS, logits(3, 4, 5, seed=1))
    for ensemble in (three, three.weighted([0.5, 0.3, 0.2])):
        one = gradient(KD(target="each"), network, ensemble, brought)
        two = gradient(KD(), network, ensemble, brought)
        assert torch.allclose(one, two, atol=1e-6)


def test_reverse_each_has_the_gradient_of_the_mean_of_logits(
    student, batch, logits, three
):
    # sum_m KL(student || m) / N = KL(student || normalised geometric mean) + constant
    network, brought = student(logits(4, 5)), batch(LABELS, logits(3, 4, 5, seed=1))
    each = gradient(KD(target="each", direction="reverse"), network, three, brought)
    mean = KD(direction="reverse")
    of_logits = Ensemble(three.members, "logits")
    assert torch.allclose(each, gradient(mean, network, of_logits, brought), atol=1e-5)
    assert not torch.allclose(each, gradient(mean, network, three, brought), atol=1e-2)


def test_each_with_equal_logits_leaves_nothing(student, batch, logits, three):
    z = logits(4, 5)
    learner = KD(target="each").learner(student(z), three)
    losses = learner(batch(LABELS, z.expand(3, 4, 5)))
    assert losses["distillation"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("target", ["ensemble", "each"])
def test_teachers_weigh_as_the_ensemble_says(student, batch, logits, three, target):
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    method = KD(target=target)
    # 2 : 1 is the same as the first teacher twice
    weighted = three.weighted([2.0, 1.0, 0.0])
    one = method.learner(student(z), weighted)(batch(LABELS, teachers[:2]))
    two = method.learner(student(z), three)(batch(LABELS, teachers[[0, 0, 1]]))
    assert torch.allclose(one["distillation"], two["distillation"], rtol=1e-4)


@pytest.mark.parametrize("target", ["ensemble", "each"])
def test_a_high_temperature_compares_centred_logits_of_the_mean(
    student, batch, logits, three, target
):
    # the gradient tends to that of the squared distance to the mean logits
    z, teachers = logits(4, 5), logits(3, 4, 5, seed=1)
    network = student(z)
    found = gradient(
        KD(temperature=1000, target=target), network, three, batch(LABELS, teachers)
    )
    apart = z - teachers.mean(0)
    expected = (apart - apart.mean(-1, keepdim=True)) / (5 * 4)
    assert torch.allclose(found, expected, atol=5e-4)


@pytest.mark.parametrize("target", ["ensemble", "each"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_set_of_one_teacher_is_plain_distillation_bit_for_bit(
    digits, tmp_path, make_member, target, average
):
    """Against a plain loop that knows nothing of ensembles, on cached logits."""
    teacher = make_member(tmp_path / "teacher.safetensors", 7, "convnet,width=4")
    method = KD(
        epochs=3,
        batch_size=18,
        target=target,
        label_weight=0.1,
        temperature=4,
        start="scratch",
        plain="always",
        selection="last",
    )
    data = replace(digits, unlabelled=None)
    options = RunOptions(device="cpu", cache=tmp_path / "cache", seed=5)
    session = open_session(options, data, None, RunLog(quiet=True))
    ensemble = Ensemble((teacher,), average)
    student = distil_student(session, ensemble, method, "mlp,width=8")

    images = data.normalization(data.train.images)
    with torch.no_grad():
        cached = teacher.network()(images)
    network = init_model("mlp,width=8", 10, (1, 8, 8), 5)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": 5e-4},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
    )
    for step in range(9):
        chosen = batch_indices(54, 18, 5, step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, 9, 0.05, 0.1)
        logits = network.train()(images[chosen])
        kd = 4.0**2 * F.kl_div(
            (logits / 4).log_softmax(-1),
            (cached[chosen] / 4).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        label = F.cross_entropy(logits, data.train.labels[chosen], reduction="sum") / 18
        optimizer.zero_grad()
        torch.stack([(1 - 0.1) * kd, 0.1 * label]).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    own = student.network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in network.state_dict().items())


def test_unlabelled_images_are_distilled_on(digits, tmp_path, make_member):
    teacher = make_member(tmp_path / "teacher.safetensors", 7)
    method = KD(epochs=1, batch_size=54, plain="always", label_weight=0.5)
    seen = []
    for data in (digits, replace(digits, unlabelled=None)):
        options = RunOptions(device="cpu", cache=tmp_path / "cache")
        session = open_session(options, data, None, RunLog(quiet=True))
        student = distil_student(session, Ensemble((teacher,)), method)
        seen.append(student.train_images)
    assert seen == [(54 + 840) // 54 * 54, 54]


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {"temperature": -1}, {"label_weight": 1.1}, {"target": "all"}],
)
def test_values_out_of_range_are_refused_in_one_sentence(fields):
    name = next(iter(fields))
    message = f"hyperparameters of kd must be valid, but {name}: .*; see: metaensemble"
    with pytest.raises(InputError, match=message):
        make_method("kd", **fields)
