import math

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import derive_seed
from metaensemble.engine import RunLog
from metaensemble.methods import Batch, Meal, Task
from metaensemble.methods.discriminator import Discriminator, reverse_gradient
from metaensemble.methods.meal import MealLearner, aligned, distance_between, last_of
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, LiveTeacher
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import distil_student

LN2 = math.log(2)
CONVNET = "convnet,width=4"


@pytest.fixture(scope="module")
def members(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [make_member(folder / f"{i}.safetensors", i, CONVNET) for i in range(3)]


@pytest.fixture
def images(digits):
    def make(count: int, labels=None) -> Batch:
        pixels = digits.train.images[:count]
        labels = digits.train.labels[:count] if labels is None else labels
        return Batch(0, digits.normalization(pixels), labels, pixels=pixels)

    return make


@pytest.fixture
def learner_of(digits):
    def make(method, ensemble, student=None) -> MealLearner:
        task = Task(digits.input_shape, digits.train.labels)
        student = student or init_model(CONVNET, 10, digits.input_shape, 7)
        torch.manual_seed(0)  # of the discriminators' weights
        (stage,) = method.stages(student, ensemble, task)
        assert isinstance(stage.learner, MealLearner)
        return stage.learner

    return make


def test_each_step_draws_a_teacher_uniformly_by_its_seed(learner_of, members):
    learner = learner_of(Meal(), Ensemble(tuple(members)))

    def draws() -> list[int]:
        found = []
        for step in range(3000):
            # as the engine seeds a step, without other devices' generators
            torch.default_generator.manual_seed(derive_seed(0, "step", step))
            found.append(learner.draw())
        return found

    first = draws()
    assert first == draws()
    for teacher in range(3):  # 4 standard deviations of a binomial count
        assert abs(first.count(teacher) - 1000) < 4 * math.sqrt(3000 * 2 / 9)


def test_weighted_members_are_drawn_by_their_weights(learner_of, members):
    weighted = Ensemble(tuple(members), weights=(0.75, 0.0, 0.25))
    learner = learner_of(Meal(), weighted)
    torch.manual_seed(0)
    drawn = [learner.draw() for _ in range(2000)]
    assert drawn.count(1) == 0
    assert abs(drawn.count(0) - 1500) < 4 * math.sqrt(2000 * 3 / 16)


def test_one_teacher_leaves_nothing_to_chance(learner_of, members, images):
    learner = learner_of(Meal(), Ensemble((members[0],))).eval()
    torch.manual_seed(1)
    one = learner(images(4))
    torch.manual_seed(2)
    two = learner(images(4))
    assert {learner.draw() for _ in range(50)} == {0}
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_only_the_drawn_teacher_runs(learner_of, members, images, monkeypatch):
    runs: list[LiveTeacher] = []
    run = LiveTeacher.__call__

    def noted(self, *arguments):
        runs.append(self)
        return run(self, *arguments)

    learner = learner_of(Meal(), Ensemble(tuple(members)))
    monkeypatch.setattr(LiveTeacher, "__call__", noted)
    torch.manual_seed(5)
    expected = learner.draw()
    torch.manual_seed(5)
    learner(images(4))
    assert runs == [learner.teachers[expected]]
    assert not runs[0].network.training


def test_its_cost_is_one_teacher_per_step(digits, members, tmp_path):
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, digits, None, RunLog(quiet=True))
    method = Meal(epochs=0.1, batch_size=18, start="scratch")
    student = distil_student(session, Ensemble(tuple(members)), method)
    # one teacher on each image trained on, all three on those of validation
    validation = 3 * len(digits.validation)
    assert student.teacher_images == student.train_images + validation


@pytest.mark.parametrize("distance", ["ce", "l1", "l2"])
def test_a_student_like_its_teacher_has_nothing_to_match(
    learner_of, members, images, distance
):
    student = members[0].network()
    method = Meal(distance=distance, adversary="none", gammas=(1,))
    learner = learner_of(method, Ensemble((members[0],)), student).eval()
    losses = learner(images(6))
    assert losses.keys() == {"similarity"}
    assert losses["similarity"].item() == pytest.approx(0, abs=1e-6)
    losses["similarity"].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads
    assert max(float(g.abs().max()) for g in grads) < 1e-6


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        # softmax (1/4, 3/4) against (1/2, 1/2): sum p log (p / q)
        ("ce", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ("l1", math.log(3) / 2),
        ("l2", math.log(3) ** 2 / 2),
    ],
)
def test_distances_by_hand(distance, expected):
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    got = distance_between(student, teacher, distance)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_no_discriminator_tells_equal_vectors_apart():
    torch.manual_seed(0)
    judge, vectors = Discriminator(12, 2), torch.randn(64, 12)
    scores = judge(torch.cat([vectors, vectors])).argmax(1)
    right = (scores[:64] == 0).sum() + (scores[64:] == 1).sum()
    assert right == 64  # 50 %
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.5)
    losses: list[float] = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = judge.loss(vectors, vectors, "none")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) >= LN2 - 1e-6
    assert losses[-1] == pytest.approx(LN2, abs=1e-3)


def test_a_discriminator_learns_what_differs():
    # with a ReLU after the last layer no score is negative, so that no loss of a wrong
    # pair is below ln 2, and the mean not below ln 2 / 2
    torch.manual_seed(0)
    judge, vectors = Discriminator(12, 2), torch.randn(64, 12)
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss = judge.loss(vectors + 1, vectors - 1, "none")
        loss.backward()
        optimizer.step()
    assert judge.loss(vectors + 1, vectors - 1, "none").item() < 0.1
    scores = judge(vectors + 1)
    assert bool((scores[:, 0] > 0).all())
    assert bool((scores[:, 1] < 0).all())


@pytest.mark.parametrize(
    ("length", "shrink", "widths"),
    [(1000, 2, [500, 250, 2]), (1000, 8, [125, 15, 2]), (10, 2, [8, 8, 2])],
)
def test_layers_of_discriminators_shrink(length, shrink, widths):
    linear = [m for m in Discriminator(length, shrink).layers if hasattr(m, "weight")]
    assert [layer.out_features for layer in linear] == widths


def test_a_reversal_is_the_identity_with_the_opposite_gradient():
    value = torch.tensor([1.0, -2.0], requires_grad=True)
    out = reverse_gradient(value)
    assert torch.equal(out, value)
    (out * torch.tensor([3.0, 5.0])).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [-3, -5]


def test_the_adversary_turns_the_students_gradient_and_no_others(
    learner_of, members, images
):
    found = {}
    for adversary in ("reversal", "cooperative"):
        method = Meal(adversary=adversary, eta=0.5)
        learner = learner_of(method, Ensemble((members[0],))).eval()
        losses = learner(images(6))
        losses["discriminator"].backward()
        found[adversary] = losses["discriminator"], learner
    (one, against), (two, along) = found.values()
    assert torch.equal(one, two)
    assert one.item() > 0
    pairs = zip(
        against.student.named_parameters(), along.student.parameters(), strict=True
    )
    moved = 0.0
    for (name, p), q in pairs:
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert torch.allclose(p.grad, -q.grad, rtol=1e-4, atol=1e-8), name
        moved += float(p.grad.abs().sum())
    assert moved > 0
    judges = against.discriminators.parameters(), along.discriminators.parameters()
    for p, q in zip(*judges, strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_the_discriminators_rate_scales_their_gradient_only(
    learner_of, members, images
):
    grads = []
    for rate in (1.0, 0.25):
        method = Meal(discriminator_rate=rate)
        learner = learner_of(method, Ensemble((members[0],))).eval()
        torch.stack(list(learner(images(6)).values())).sum().backward()
        grads.append(
            [
                [p.grad for p in module.parameters()]
                for module in (learner.discriminators, learner.student)
            ]
        )
    (judges, student), (slow_judges, same_student) = grads
    assert all(torch.allclose(0.25 * a, b) for a, b in zip(judges, slow_judges))  # noqa: B905
    assert all(torch.equal(a, b) for a, b in zip(student, same_student))  # noqa: B905


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("shape", [(3, 7, 5), (8, 1, 1), (16, 32, 2), (1, 9, 9)])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_a_vectors_length_depends_on_no_map(shape, length, pooling):
    assert aligned(torch.randn(2, *shape), length, pooling).shape == (2, length)


def test_alignment_by_hand():
    value = torch.tensor([[[[1.0, 3], [5, 7]], [[2, 0], [4, 8]]]])  # (1, 2, 2, 2)
    assert aligned(value, 2).tolist() == [[1.5, 6]]
    assert aligned(value, 2, "max").tolist() == [[3, 8]]
    vector = torch.tensor([[1.0, 3, 5, 9]])[..., None, None]
    assert aligned(vector, 2).tolist() == [[2, 7]]


def test_values_are_counted_from_the_logits_backwards():
    assert last_of([1, 2, 3], 2) == [2, 3]
    assert last_of([1, 2, 3], 5) == [1, 1, 1, 2, 3]


def test_labels_play_no_part(learner_of, members, images, digits):
    learner = learner_of(Meal(), Ensemble((members[0],))).eval()
    one = learner(images(6))
    other = learner(images(6, digits.train.labels[:6].flip(0)))
    assert one.keys() == {"similarity", "discriminator"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_labels_count_if_they_are_given_weight(learner_of, members, images):
    learner = learner_of(Meal(label_weight=0.5), Ensemble((members[0],))).eval()
    batch = images(6)
    logits = learner.student(batch.inputs)
    expected = 0.5 * torch.nn.functional.cross_entropy(logits, batch.labels)
    assert torch.allclose(learner(batch)["label"], expected)


def test_one_image_is_a_batch(learner_of, members, images):
    losses = learner_of(Meal(), Ensemble(tuple(members)))(images(1))
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())


def test_stages_pair_across_architectures_and_share_discriminators(
    learner_of, members, images, make_member, tmp_path
):
    other = make_member(tmp_path / "mlp.safetensors", 5, "mlp,width=12")
    learner = learner_of(Meal(), Ensemble((members[0], other)))
    # digits are 8 x 8: three maps of the convnet, two hidden layers of the mlp
    assert [set(place.teachers) for place in learner.places] == [{0}, {0, 1}, {0, 1}]
    # 8 x 8 positions; of 4 x 4 and 12 channels 12; of 2 x 2 and 12 channels 4
    assert [place.length for place in learner.places] == [64, 12, 4]
    assert [place.gamma for place in learner.places] == [0.01, 0.05, 0.1]
    assert len(learner.discriminators) == 4
    for seed in range(6):  # whichever is drawn
        torch.manual_seed(seed)
        assert all(value.isfinite() for value in learner(images(4)).values())


def test_the_logits_alone_ask_for_no_inner_stages(learner_of, members, images):
    learner = learner_of(Meal(gammas=(0, 1)), Ensemble((members[0],))).eval()
    assert learner.places == ()
    assert len(learner.discriminators) == 1
    batch = images(6)
    with torch.no_grad():
        target = members[0].network()(batch.inputs).log_softmax(-1)
        own = learner.student(batch.inputs).log_softmax(-1)
    expected = (target.exp() * (target - own)).sum(-1).mean()
    assert torch.allclose(learner(batch)["similarity"], expected, rtol=1e-4)


def test_gammas_must_leave_something_to_match(learner_of, members):
    with pytest.raises(InputError, match=r"one of --gammas must be above 0, .* 0 1"):
        learner_of(Meal(gammas=(0, 0)), Ensemble((members[0],)))


@pytest.mark.parametrize("fields", [{"adversary": "none"}, {"eta": 0}])
def test_without_an_adversary_there_are_no_discriminators(learner_of, members, fields):
    learner = learner_of(Meal(**fields), Ensemble((members[0],)))
    assert all(name.startswith("student.") for name in learner.state_dict())


def test_discriminators_are_saved_and_not_exported(learner_of, members, digits):
    learner = learner_of(Meal(), Ensemble((members[0],)))
    assert any(name.startswith("discriminators.") for name in learner.state_dict())
    plain = init_model(CONVNET, 10, digits.input_shape, 0).state_dict()
    assert learner.export().state_dict().keys() == plain.keys()
