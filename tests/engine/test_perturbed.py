from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from metaensemble.engine import PerturbedBatches, RunLog, TrainingBatches
from metaensemble.methods import (
    KD,
    Batch,
    LatentEnsemble,
    Learner,
    Stage,
    Supervised,
    Task,
)
from metaensemble.methods.contract import Perturbation, StudentLearner
from metaensemble.methods.features import FeatureLoss, FeatureMethod, Features, Layout
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.students import distil_student, train_stage

RADIUS = 64**0.5 / 255


def latent(digits, ensemble: Ensemble, apart: float = 0.2) -> Learner:
    """Members of a convolutional network, their factors apart."""
    network = init_model("convnet,width=4", 10, digits.input_shape, 0)
    task = Task(digits.input_shape, digits.train.labels)
    (stage,) = LatentEnsemble().stages(network, ensemble, task)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stage.learner.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter += apart * noise
    return stage.learner


@pytest.fixture
def perturbed(digits, ensemble) -> Callable[..., PerturbedBatches]:
    def make(
        kind: Perturbation = "tdiv_sdiv",
        learner: Learner | None = None,
        *,
        seed: int = 0,
        logits: bool = True,
        teachers: Ensemble = ensemble,
    ) -> PerturbedBatches:
        batches = TrainingBatches(
            digits.train,
            digits.augmentation,
            digits.normalization,
            16,
            seed,
            teachers=teachers,
            views=2,
            live=True,
        )
        learner = learner or latent(digits, teachers)
        return PerturbedBatches(batches, kind, learner, teachers, logits=logits)

    return make


@pytest.mark.parametrize("kind", ["tdiv_sdiv", "ods", "confods"])
def test_a_batch_is_of_the_moved_images(kind, perturbed, ensemble, digits):
    made = perturbed(kind)
    batch, plain = made(3), made.batches(3)
    assert plain.pixels is not None
    start = plain.pixels.float() / 255
    assert batch.pixels is not None
    lengths = (batch.pixels - start).flatten(1).norm(dim=1)
    assert (lengths > 0).all()
    assert (lengths <= RADIUS + 1e-6).all()
    assert batch.pixels.min() >= 0
    assert batch.pixels.max() <= 1
    assert torch.equal(batch.inputs, digits.normalization(batch.pixels))
    assert batch.clean is not None
    assert torch.equal(batch.clean, plain.inputs)
    assert torch.equal(batch.labels, plain.labels)
    assert batch.indices is not None
    assert plain.indices is not None
    assert torch.equal(batch.indices, plain.indices)
    with torch.no_grad():
        said = [m.network()(m.prepare(batch.pixels)) for m in ensemble.members]
    assert batch.teacher_logits is not None
    torch.testing.assert_close(batch.teacher_logits, torch.stack(said))
    assert not batch.inputs.requires_grad


@pytest.mark.parametrize("kind", ["tdiv_sdiv", "ods", "confods"])
def test_a_batch_is_a_function_of_seed_step_and_state(
    kind, perturbed, digits, ensemble
):
    first, second = perturbed(kind), perturbed(kind)
    forward = [first(step).inputs for step in range(4)]
    torch.manual_seed(5)  # the global generator plays no part
    backward = [second(step).inputs for step in reversed(range(4))]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first(0).inputs, perturbed(kind, seed=1)(0).inputs)
    other = perturbed(kind, latent(digits, ensemble, apart=0.3))
    same = torch.equal(first(0).inputs, other(0).inputs)
    assert same == (kind != "tdiv_sdiv")  # which looks at the student


def test_the_learner_is_asked_in_eval_mode_and_left_as_it_was(
    perturbed, digits, ensemble, monkeypatch
):
    learner = latent(digits, ensemble).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    modes = []
    asked = learner.predictions

    def predictions(inputs: Tensor) -> Tensor:
        modes.append(learner.training)
        return asked(inputs)

    monkeypatch.setattr(learner, "predictions", predictions)
    perturbed("tdiv_sdiv", learner)(0)
    assert modes == [False]
    assert all(module.training for module in learner.modules())
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in learner.parameters())


def test_a_learner_of_one_network_is_asked_once(
    perturbed, digits, ensemble, monkeypatch
):
    student = init_model("convnet,width=4", 10, digits.input_shape, 0)
    learner = KD().learner(student, ensemble)
    asked = []
    export = learner.export
    monkeypatch.setattr(learner, "export", lambda: asked.append(1) or export())
    made = perturbed("tdiv_sdiv", learner)
    first = made(0)
    made(1)
    assert asked == [1]
    assert torch.equal(made(0).inputs, first.inputs)


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", get_args(Perturbation))
def test_passes_of_teachers_are_counted(kind, count, logits, perturbed, ensemble):
    few = ensemble.subset(range(count))
    made = perturbed(kind, logits=logits, teachers=few)
    passes = []
    for teacher in made.teachers:
        teacher.network.register_forward_hook(lambda *_: passes.append(1))
    batch = made(0)
    assert len(passes) == made.teacher_passes
    assert (batch.teacher_logits is None) == (not logits)


def test_nothing_to_tell_apart_leaves_the_images(perturbed, digits, ensemble):
    # one teacher; or teachers and members that are all equal, at step 0
    alone = ensemble.subset([0])
    twins = Ensemble((ensemble.members[0],) * 3)
    for teachers in (alone, twins):
        learner = latent(digits, teachers, apart=0.0)
        batch = perturbed("tdiv_sdiv", learner, teachers=teachers)(0)
        assert batch.clean is not None
        torch.testing.assert_close(batch.inputs, batch.clean, atol=1e-6, rtol=0)
        assert torch.isfinite(learner(batch)["distillation"])


@pytest.mark.parametrize("method", [LatentEnsemble, KD])
def test_a_resumed_training_has_the_same_bits(
    method, perturbed, digits, ensemble, trained
):
    settings = method(epochs=3, batch_size=16)

    class Steps:
        """As the batches, made for a learner."""

        def __init__(self, learner: Learner) -> None:
            self.source = perturbed("tdiv_sdiv", learner)
            self.steps_per_epoch = 3

        def __call__(self, step: int) -> Batch:
            return self.source(step)

    def learner() -> Learner:
        network = init_model("convnet,width=4", 10, digits.input_shape, 0)
        task = Task(digits.input_shape, digits.train.labels)
        (stage,) = settings.stages(network, ensemble, task)
        return stage.learner

    whole = learner()
    expected = trained(whole, settings, Steps(whole))
    halves = learner()
    trained(halves, settings, Steps(halves), checkpoint="c", stop_after=4)
    again = learner()
    found = trained(again, settings, Steps(again), checkpoint="c")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if method is LatentEnsemble:
        assert any(v.any() for n, v in expected.items() if "inputs" in n)


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


class _Vectors(FeatureLoss):
    """Squared distance of the vectors' norms, which need no adapter."""

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        assert batch.pixels is not None
        assert batch.pixels.is_floating_point() == (batch.clean is not None)
        difference = student.vector.norm(dim=1) - teacher.vector.norm(dim=1)
        return difference.square().mean()


class Norms(FeatureMethod):
    summary: ClassVar[str] = "for this test"
    paper: ClassVar[str] = "-"
    cost: ClassVar[str] = "-"
    name: Literal["norms"] = "norms"

    def loss(self, layout: Layout) -> FeatureLoss:
        return _Vectors()


@pytest.mark.parametrize(
    ("kind", "method", "per_image"),
    [
        ("tdiv_sdiv", KD, 2 + 3),
        ("ods", KD, 1 + 3),
        ("confods", LatentEnsemble, 1 + 3),
        ("tdiv_sdiv", LatentEnsemble, 2 + 3),
        ("tdiv_sdiv", Norms, 2 + 3),  # it runs its three teachers itself
    ],
)
def test_methods_learn_from_moved_images(
    kind, method, per_image, session, ensemble, digits
):
    settings = method(perturbation=kind, epochs=2, batch_size=447, learning_rate=0.02)
    student = distil_student(session, ensemble, settings)
    seen = student.train_images
    assert seen == 4 * 447  # 54 + 840 images
    validation = len(digits.validation) * 3
    assert student.teacher_images == validation + seen * per_image
    objectives = [row["objective"] for row in student.history]
    assert all(0 <= value < 10 for value in objectives)
    plain = settings.model_copy(update={"perturbation": "none"})
    other = distil_student(session, ensemble, plain).network.state_dict()
    own = student.network.state_dict()
    assert any(not torch.equal(own[name], other[name]) for name in own)


class _Prepares(StudentLearner):
    preparation: ClassVar[bool] = True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.clean is None
        assert batch.teacher_logits is not None  # the cached ones
        return {"loss": self.student(batch.inputs).square().mean()}


def test_a_preparation_sees_the_images_as_they_are(session, ensemble):
    settings = KD(perturbation="tdiv_sdiv", epochs=1, batch_size=447)
    info = ensemble.info
    network = init_model(info.architecture, 10, info.input_shape, 0)
    stage = Stage("first", settings, _Prepares(network))
    train_stage(session, ensemble, stage, info, 0)


def test_plain_training_has_no_teachers_to_tell_apart():
    with pytest.raises(
        ValidationError,
        match=r"teachers differ only if .* --perturbation is ods .* leave it",
    ):
        Supervised(perturbation="ods")
