"""What every method on inner features must do, whatever its loss."""

import hashlib

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.methods import (
    AT,
    CC,
    CRD,
    FT,
    IRG,
    RKD,
    SP,
    VID,
    Batch,
    FitNet,
    Task,
)
from metaensemble.methods.adapters import BatchNorm, attention, unit
from metaensemble.methods.features import (
    FeatureLearner,
    layout_of,
    to_one_size,
)
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, LiveTeacher

METHODS = {
    "fitnet": FitNet(),
    "at": AT(),
    "sp": SP(),
    "cc": CC(),
    "cc_paper": CC(form="paper"),
    "rkd": RKD(),
    "vid": VID(),
    "ft": FT(),
    "ft_repdistiller": FT(form="repdistiller"),
    "irg": IRG(),
    "crd": CRD(embedding=8),
}
every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def members(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return {
        architecture: tuple(
            make_member(folder / f"{seed}{architecture}.safetensors", seed, spelled)
            for seed in range(3)
        )
        for architecture, spelled in (
            ("convnet", "convnet,width=4"),
            ("resnet", "resnet20,width=0.25"),
            ("mlp", "mlp,width=8"),
            ("linear", "mlp,depth=0"),
        )
    }


@pytest.fixture
def task(digits):
    return Task(digits.input_shape, digits.train.labels)


@pytest.fixture
def images(digits):
    def make(indices):
        places = torch.tensor(indices)
        pixels = digits.train.batch(places)
        return Batch(
            0,
            digits.normalization(pixels),
            digits.train.labels[places],
            pixels=pixels,
            indices=places,
        )

    return make


def learner_of(method, ensemble, task, architecture="convnet,width=4", seed=9):
    torch.manual_seed(0)
    student = init_model(architecture, 10, task.input_shape, seed)
    return FeatureLearner(method, student, ensemble, task)


def bytes_of(teacher):
    state = teacher.network.state_dict().values()
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state)).hexdigest()


@every
def test_teachers_stay_as_they_are_and_the_student_learns(name, members, task, images):
    ensemble = Ensemble((members["convnet"][0], members["resnet"][1]))
    learner = learner_of(METHODS[name], ensemble, task)
    before = [bytes_of(teacher) for teacher in learner.teachers]
    names = set(learner.state_dict())
    losses = learner.train()(images([0, 1, 2, 3]))
    assert losses.keys() == {"distillation", METHODS[name].name_}
    losses[METHODS[name].name_].backward()
    assert [bytes_of(teacher) for teacher in learner.teachers] == before
    for teacher in learner.teachers:
        assert not teacher.network.training
        assert all(p.grad is None for p in teacher.network.parameters())
    grads = [p.grad for p in learner.student.parameters() if p.grad is not None]
    assert sum(g.abs().sum().item() for g in grads) > 0
    assert all(torch.isfinite(g).all() for g in grads)
    assert all(n.startswith(("student.", "losses.")) for n in names)


@every
def test_a_weight_of_zero_is_distillation_alone(name, members, task, images):
    method = METHODS[name].model_copy(update={"weight": 0.0})
    learner = learner_of(method, Ensemble(members["convnet"][:1]), task)
    losses = learner.train()(images([0, 1, 2]))
    assert losses[method.name_].item() == 0
    assert losses["distillation"].item() > 0


@every
def test_losses_of_several_teachers_are_their_weighted_mean(
    name, members, task, images
):
    method, batch = METHODS[name], images([0, 1, 2, 3])
    chosen = members["convnet"][:2]
    values = []
    whole = learner_of(method, Ensemble(chosen, weights=(0.25, 0.75)), task)
    state = whole.state_dict()
    for i, member in enumerate(chosen):
        alone = learner_of(method, Ensemble((member,)), task)
        prefix = f"losses.{i}."
        alone.losses[0].load_state_dict(
            {n.removeprefix(prefix): v for n, v in state.items() if prefix in n}
        )
        torch.manual_seed(i)
        values.append(alone.eval()(batch)[method.name_].item())
    torch.manual_seed(0)
    together = whole.eval()(batch)[method.name_].item()
    if name != "crd":  # its negatives are drawn for each in turn
        expected = 0.25 * values[0] + 0.75 * values[1]
        assert together == pytest.approx(expected, rel=1e-4)
    assert values[0] != values[1]


@every
def test_one_image_or_equal_images_give_no_nan(name, members, task, images):
    for architecture in ("convnet", "mlp"):
        ensemble = Ensemble(members[architecture][:1])
        spelled = ensemble.info.architecture
        for indices in ([0], [0, 0, 0]):
            learner = learner_of(METHODS[name], ensemble, task, spelled).train()
            loss = learner(images(indices))[METHODS[name].name_]
            loss.backward()
            assert torch.isfinite(loss)
            for parameter in learner.parameters():
                if parameter.grad is not None:
                    assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", ["at", "sp", "cc_paper", "rkd", "irg"])
def test_the_teachers_own_weights_leave_nothing_to_match(name, members, task, images):
    member = members["convnet"][0]
    learner = learner_of(METHODS[name], Ensemble((member,)), task)
    learner.student.load_state_dict(member.state())
    losses = learner.eval()(images([0, 1, 2, 3]))
    for value in losses.values():
        assert value.item() == pytest.approx(0, abs=1e-5)


def test_terms_on_the_logits_are_weighted_as_told(members, task, images):
    ensemble = Ensemble(members["convnet"][:2])
    batch = images([0, 1, 2])
    one = learner_of(AT(label_weight=1, kd_weight=0), ensemble, task).eval()(batch)
    assert one.keys() == {"label", "at"}
    logits = learner_of(AT(), ensemble, task).student.eval()(batch.inputs)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(one["label"], expected)
    two = learner_of(AT(label_weight=2, kd_weight=3), ensemble, task).eval()(batch)
    torch.testing.assert_close(two["label"], 2 * expected)
    three = learner_of(AT(), ensemble, task).eval()(batch)
    torch.testing.assert_close(two["distillation"], 3 * three["distillation"])


def test_export_gives_the_student_itself(members, task):
    learner = learner_of(VID(), Ensemble(members["convnet"][:1]), task)
    assert learner.export() is learner.student


def test_unknown_layers_are_refused_with_those_that_exist(members, task):
    ensemble = Ensemble(members["resnet"][:1])
    with pytest.raises(
        InputError,
        match=r"one of the student's, but .* no 'layer9'; there are .*layer2",
    ):
        learner_of(AT(student_layers=("layer9",)), ensemble, task, "resnet20")
    with pytest.raises(
        InputError, match=r"one of .*safetensors's, but .* no 'block'; .*layer1"
    ):
        learner_of(AT(teacher_layers=("block",)), ensemble, task)


def test_layers_are_named_in_pairs(members, task, images):
    ensemble = Ensemble(members["resnet"][:1])
    with pytest.raises(InputError, match=r"must be as many, but are 2 and 1; name"):
        learner_of(
            AT(student_layers=("layer1", "layer2"), teacher_layers=("layer3",)),
            ensemble,
            task,
            "resnet20,width=0.25",
        )
    learner = learner_of(
        AT(student_layers=("layer1", "layer2"), teacher_layers=("layer2", "layer3")),
        ensemble,
        task,
        "resnet20,width=0.25",
    )
    (place,) = learner.layouts
    assert [str(tap) for tap in place.student] == ["layer1", "layer2"]
    assert [str(tap) for tap in place.teacher] == ["layer2", "layer3"]
    assert learner(images([0, 1]))["at"].item() > 0


def test_layers_of_one_side_are_paired_by_resolution(members, task):
    ensemble = Ensemble(members["resnet"][:1])
    learner = learner_of(
        SP(student_layers=("layer2",)), ensemble, task, "resnet20,width=0.25"
    )
    assert [str(tap) for tap in learner.layouts[0].teacher] == ["layer3"]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_network_without_inner_features_is_refused(members, task, side):
    teacher = members["linear" if side == "teacher" else "mlp"][:1]
    student = "mlp,depth=0" if side == "student" else "mlp,width=8"
    with pytest.raises(
        InputError, match=r"must have inner features .* has none; choose --method kd"
    ):
        learner_of(AT(), Ensemble(teacher), task, student)


def test_the_vector_is_what_the_last_layer_reads(members, task, images):
    member, batch = members["resnet"][0], images([0, 1])
    learner = learner_of(RKD(), Ensemble((member,)), task, "resnet20,width=0.25")
    place = learner.layouts[0]
    assert place == layout_of(learner.student, LiveTeacher(member), task)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, student, teacher, batch):
            seen.append((student, teacher))
            return student.vector.sum()

    learner.losses[0] = Spy()
    learner.eval()(batch)
    ((student, teacher),) = seen
    head = learner.student.get_submodule(place.student_vector.module)
    torch.testing.assert_close(head(student.vector), student.logits)
    head = learner.teachers[0].network.get_submodule(place.teacher_vector.module)
    torch.testing.assert_close(head(teacher.vector), teacher.logits)
    assert not teacher.vector.requires_grad


def test_maps_are_averaged_to_the_smaller_size():
    first = torch.arange(16.0).view(1, 1, 4, 4)
    second = torch.zeros(1, 2, 2, 8)
    one, two = to_one_size(first, second)
    assert torch.equal(one[0, 0, 0], torch.tensor([2.0, 3, 4, 5]))
    assert two.shape == (1, 2, 2, 4)
    assert to_one_size(first, first)[0] is first


def test_unit_vectors_of_zeros_have_no_gradient():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    value = unit(vectors)
    torch.testing.assert_close(value, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    value[:, 0].sum().backward()
    expected = torch.tensor([[0.128, -0.096], [0.0, 0.0]])
    torch.testing.assert_close(vectors.grad, expected)


def test_attention_is_the_direction_of_mean_squares():
    maps = torch.tensor([[[[1.0, 2.0]], [[1.0, 2.0]]]])  # (1, 2, 1, 2)
    expected = torch.tensor([[1.0, 4.0]]) / 17**0.5
    torch.testing.assert_close(attention(maps), expected)


def test_batch_norm_of_a_single_value_uses_its_statistics(logits):
    norm = BatchNorm(3)
    norm.running_mean = torch.ones(3)
    one = logits(1, 3, 1, 1)
    torch.testing.assert_close(norm(one), (one - 1) / (1 + norm.eps) ** 0.5)
    many = logits(4, 3, 2, 2)
    plain = torch.nn.BatchNorm2d(3)
    torch.testing.assert_close(norm(many), plain(many))
