import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods import Batch, StudentEnsemble, Task
from metaensemble.methods.student_ensemble import (
    StudentsLearner,
    feature_loss,
    mean_loss,
)
from metaensemble.metrics import parameters
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
CONVNET = "convnet,width=10"
MLP = "mlp,width=12"


def task(architecture: str) -> Task:
    return Task(SHAPE, LABELS, architecture, num_classes=5)


@pytest.fixture
def stage():
    """The stage of a method whose students are for five classes."""

    def make(architecture: str = CONVNET, **fields):
        torch.manual_seed(0)
        student = init_model(architecture, 5, SHAPE, 0)
        method = StudentEnsemble(**fields)
        (found,) = method.stages(student, Ensemble(()), task(architecture))
        return found

    return make


@pytest.fixture
def learner(stage) -> Callable[..., StudentsLearner]:
    return lambda *arguments, **fields: stage(*arguments, **fields).learner.train()


def images(labels: Tensor = LABELS, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(0, torch.randn(len(labels), *SHAPE, generator=random), labels)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize(("shared", "stem"), [("stem", 10), ("none", None)])
def test_widths_fall_by_floors_in_every_layer_but_the_shared(learner, shared, stem):
    made = learner(shared=shared, students=4)
    for j, student in enumerate(made.students):

        def part(channels: int, j: int = j) -> int:
            return channels * (4 - j) // 4

        first = stem or part(10)
        assert student.conv1.out_channels == student.bn1.num_features == first
        assert student.conv2.weight.shape[:2] == (part(20), first)
        assert student.conv3.weight.shape[:2] == (part(20), part(20))
        assert student.conv4.weight.shape[:2] == (part(40), part(20))
        assert student.fc.weight.shape == (5, part(40))
    sizes = [parameters(student) for student in made.students]
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_first_student_is_the_network_itself_and_each_loads_into_its_text(learner):
    made = learner()
    made(images())  # moves running statistics
    networks = made.networks()
    assert [grown.name for grown in networks] == [f"student-{j}" for j in range(5)]
    assert networks[0].architecture == CONVNET
    made.eval()
    said = made.predictions(images().inputs)
    for grown, student, expected in zip(networks, made.students, said, strict=True):
        plain = init_model(grown.architecture, 5, SHAPE, 7)
        plain.load_state_dict(grown.network.state_dict())
        torch.testing.assert_close(plain.eval()(images().inputs), expected)
        own = {p.data_ptr() for p in student.parameters()}
        assert not own & {p.data_ptr() for p in grown.network.parameters()}
    assert networks[0].network.state_dict().keys() == made.export().state_dict().keys()


def test_the_student_to_ship_comes_first(stage):
    found = stage(ship=2)
    names = [grown.name for grown in found.learner.networks()]
    assert names == ["student-2", "student-0", "student-1", "student-3", "student-4"]
    assert found.architecture == found.learner.networks()[0].architecture != CONVNET
    small = init_model(found.architecture, 5, SHAPE, 0)
    small.load_state_dict(found.learner.export().state_dict())
    assert stage().architecture == CONVNET


def test_the_teacher_is_the_mean_of_the_logits(logits):
    said = logits(3, 4, 5)
    target = (said.sum(0) / 3 / 2.5).softmax(-1)
    expected = sum(
        2.5**2 * (target * (target.log() - (own / 2.5).log_softmax(-1))).sum(-1).mean()
        for own in said
    )
    torch.testing.assert_close(mean_loss(said, 2.5), expected)
    alike = said[:1].expand(4, -1, -1)
    assert mean_loss(alike, 2.5).abs() < 1e-6
    permuted = said[[0, 2, 1]]
    torch.testing.assert_close(mean_loss(permuted, 2.5), mean_loss(said, 2.5))


def test_the_loss_is_the_weighted_sum_of_its_three_terms(learner):
    made = learner(label_weight=0.5, feature_weight=2, kd_weight=3, temperature=2)
    parts = made.parts(images().inputs)
    losses = made(images())
    labels = [F.cross_entropy(own, LABELS) for own in parts.logits]
    torch.testing.assert_close(losses["label"], 0.5 * torch.stack(labels).sum())
    squares = [
        (own - wanted).square().mean()
        for maps in parts.maps[1:]
        for own, wanted in zip(maps, parts.maps[0], strict=True)
    ]
    assert len(squares) == 4 * len(made.taps[0])
    torch.testing.assert_close(losses["features"], 2 * torch.stack(squares).sum())
    mean = mean_loss(parts.logits, 2.0)
    torch.testing.assert_close(losses["distillation"], 3 * mean)


def test_one_student_alone_is_trained_plainly():
    network = init_model(CONVNET, 5, SHAPE, 0)
    made = StudentsLearner(StudentEnsemble(), [network], [CONVNET], task(CONVNET))
    losses = made.train()(images())
    plain = copy.deepcopy(network).train()
    expected = 0.4 * F.cross_entropy(plain(images().inputs), LABELS)
    assert losses["features"] == 0
    assert losses["distillation"].abs() < 1e-6
    torch.testing.assert_close(losses["label"], expected)
    total(losses).backward()
    expected.backward()
    for own, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_through_the_mean(logits):
    said = logits(3, 4, 5).requires_grad_()
    mean_loss(said, 2.0).backward()
    with torch.no_grad():
        target = (said.mean(0) / 2).softmax(-1)
        expected = 2 * ((said / 2).softmax(-1) - target) / 4  # T (p_j - q) / batch
    torch.testing.assert_close(said.grad, expected)


def test_no_gradient_of_maps_reaches_the_first_students_own_layers(learner):
    made = learner()
    made(images())["features"].backward()
    first = dict(made.students[0].named_parameters())
    for name, parameter in first.items():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved == name.startswith(("conv1", "bn1")), name
    for student in made.students[1:]:
        assert student.conv4.weight.grad.abs().sum() > 0
    for parameter in made.adapters.parameters():
        assert parameter.grad.abs().sum() > 0

    # what reaches the stem comes through the others alone
    leaf = torch.ones(2, requires_grad=True)
    fixed = torch.zeros(2)
    assert not feature_loss([[leaf * 3], [fixed]]).requires_grad
    feature_loss([[leaf * 3], [leaf * 2]]).backward()
    torch.testing.assert_close(leaf.grad, torch.tensor([-2.0, -2.0]))


def test_what_is_evaluated_does_not_depend_on_the_rest_of_the_batch(learner):
    """The authors' code keeps its students in a list, in training mode for ever."""
    made = learner()
    for seed in range(3):
        made(images(seed=seed))
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.eval()
    together = images().inputs
    networks = [grown.network for grown in made.networks()]
    with torch.no_grad():
        whole = made.predictions(together)
        single = torch.cat([made.predictions(one[None]) for one in together], 1)
        exported = torch.stack([network(together[:1]) for network in networks])
    torch.testing.assert_close(whole, single)
    torch.testing.assert_close(exported, whole[:, :1])
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())


def test_permuting_the_later_students_only_permutes_their_terms(learner):
    made = learner(students=4).double()
    batch = Batch(0, images().inputs.double(), LABELS)
    expected = made(batch)
    order = [0, 3, 1, 2]
    permuted = StudentsLearner(
        made.config,
        [made.students[j] for j in order],
        [made.architectures[j] for j in order],
        task(CONVNET),
        made.common,
    )
    adapters = [made.adapters[j - 1] for j in order[1:]]
    permuted.adapters = nn.ModuleList(adapters)
    losses = permuted.train()(batch)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
    own = permuted.parts(batch.inputs).logits
    torch.testing.assert_close(own, made.parts(batch.inputs).logits[order])


def test_the_stem_is_one_for_all_and_sees_each_batch_once(learner):
    made = learner()
    assert made.common == ("conv1", "bn1")
    assert all(s.conv1 is made.students[0].conv1 for s in made.students)
    plain = copy.deepcopy(made.students[0])
    made(images())
    plain(images().inputs)
    for own in (student.bn1 for student in made.students):
        assert own.num_batches_tracked == 1
        torch.testing.assert_close(own.running_mean, plain.bn1.running_mean)
    stems = [p for p in made.parameters() if p is made.students[0].conv1.weight]
    assert len(stems) == 1
    apart = learner(shared="none")
    assert len({id(student.conv1) for student in apart.students}) == 5


def test_adapters_are_there_from_the_start_and_never_exported(learner):
    made = learner()
    kinds = {id(parameter) for parameter in made.parameters()}
    assert all(id(p) in kinds for p in made.adapters.parameters())
    assert any(name.startswith("adapters.") for name in made.state_dict())
    for grown in made.networks():
        assert grown.network.state_dict().keys() == made.export().state_dict().keys()
    again = learner()
    again.load_state_dict(made.state_dict())  # what a resumed training does
    torch.testing.assert_close(total(again(images())), total(made(images())))


def test_students_start_from_weights_of_their_own(learner):
    made = learner()
    weights = [student.conv4.weight[:8, :4] for student in made.students]
    for i, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[i + 1 :])


def test_a_network_without_maps_matches_its_vectors(learner):
    made = learner(MLP, students=3)
    widths = [[tap.channels for tap in taps] for taps in made.taps]
    assert widths == [[12, 12], [12, 8], [12, 4]]
    assert all((tap.height, tap.width) == (1, 1) for tap in made.taps[0])
    assert made(images())["features"] > 0


def test_saturated_students_leave_the_loss_finite(logits):
    said = 1e4 * logits(3, 4, 5)
    said.requires_grad_()
    loss = mean_loss(said, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(said.grad).all()


def test_unlabelled_images_count_for_all_but_the_labels_term(learner):
    losses = learner()(images(torch.full((4,), -1)))
    assert losses["label"] == 0
    assert losses["features"] > 0
    assert losses["distillation"] > 0


def test_notes_tell_what_is_shared_what_stays_whole_and_what_is_clamped(stage):
    notes = stage("resnet20,width=0.25").notes
    assert notes[0] == "all students share conv1, bn1"
    assert "conv1, layer2.0.conv2, layer3.0.conv2" in notes[1]
    assert notes[2].endswith("layer1.0.conv1, layer1.1.conv1, layer1.2.conv1")
    assert len(stage(MLP, shared="none").notes) == 0


def test_a_slim_network_can_be_narrowed_further(stage):
    slim = f"{CONVNET},slim=conv4:20>36+bn4:36+fc:36>5"
    found = stage(slim, students=2)
    text = found.learner.networks()[1].architecture
    assert text.startswith(f"{CONVNET},slim=")
    assert "conv4:10>18+bn4:18+fc:18>5" in text


@pytest.mark.parametrize(
    ("architecture", "students", "message"),
    [
        (CONVNET, 41, "must be at most 40, the channels of the widest .* but is 41"),
        ("mlp,width=8,depth=1", 2, r"has none beside its stem \(hidden.0\); choose an"),
    ],
)
def test_a_network_that_is_too_narrow_is_refused(
    stage, architecture, students, message
):
    with pytest.raises(InputError, match=message):
        stage(architecture, students=students)


def test_one_student_and_one_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        StudentEnsemble(students=1)
    with pytest.raises(ValueError, match="one of the students 0 to 2, but is 3; lower"):
        StudentEnsemble(students=3, ship=3)
