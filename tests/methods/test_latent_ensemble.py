from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.engine.fit import _optimizer
from metaensemble.methods import KD, Batch, LatentEnsemble, Task
from metaensemble.methods.latent_ensemble import LatentLearner
from metaensemble.models import build
from metaensemble.teachers import Ensemble

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])


@pytest.fixture
def teachers(make_member, tmp_path: Path) -> Callable[..., Ensemble]:
    """An ensemble of so many; only their number and weights matter here."""
    member = make_member(tmp_path / "0.safetensors", 0)

    def make(count: int, weights: tuple[float, ...] | None = None) -> Ensemble:
        return Ensemble((member,) * count, weights=weights)

    return make


@pytest.fixture
def learner(teachers) -> Callable[..., LatentLearner]:
    """A learner of a small perceptron; factors moved by draws times `apart`."""

    def make(
        count: int,
        apart: float = 0.0,
        weights: tuple[float, ...] | None = None,
        architecture: str = "mlp,width=8",
        **fields: float,
    ) -> LatentLearner:
        torch.manual_seed(0)
        student = build(architecture, 5, SHAPE)
        method = LatentEnsemble(**fields)  # pyright: ignore
        task = Task(SHAPE, LABELS)
        (stage,) = method.stages(student, teachers(count, weights), task)
        assert stage.name == "latent_ensemble"
        made = stage.learner
        assert isinstance(made, LatentLearner)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for factor in (*made.student.inputs, *made.student.outputs):
                factor += apart * torch.randn(factor.shape, generator=random)
        return made

    return make


def images(logits: Tensor, labels: Tensor = LABELS) -> Batch:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, *SHAPE, generator=random)
    return Batch(0, inputs, labels, logits)


def gradients(learner: LatentLearner, loss: Tensor) -> list[Tensor]:
    parameters = list(learner.parameters())
    return list(torch.autograd.grad(loss, parameters))


def test_each_member_learns_from_its_own_teacher(learner, logits):
    made, said = learner(3, apart=0.3), logits(3, 4, 5)
    batch = images(said)
    found = made(batch)["distillation"]
    members = made.predictions(batch.inputs)
    by_hand = [
        16 * F.kl_div((z / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="sum") / 4
        for t, z in zip(said, members, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand).mean())
    other = made(images(said[[1, 2, 0]]))["distillation"]
    assert not torch.isclose(found, other)


def test_gradients_are_those_of_the_papers_cross_entropy(learner, logits):
    made, said = learner(3, apart=0.3), logits(3, 4, 5)
    batch = images(said)
    found = gradients(made, made(batch)["distillation"])
    members = made.predictions(batch.inputs)
    soft = (said / 4).softmax(-1).flatten(0, 1)
    loss = 16 * F.cross_entropy(members.flatten(0, 1) / 4, soft)
    for one, other in zip(found, gradients(made, loss), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_members_that_say_what_their_teachers_say_have_no_loss(learner):
    made = learner(3, apart=0.3)
    batch = images(torch.zeros(3, 4, 5))
    said = made.predictions(batch.inputs).detach()
    loss = made(images(said))["distillation"]
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(g.abs().max() < 1e-5 for g in gradients(made, loss))


def test_equal_teachers_and_members_are_single_kd_whatever_their_number(
    learner, logits
):
    said = logits(4, 5)
    torch.manual_seed(0)
    student = build("mlp,width=8", 5, SHAPE)
    single = KD(temperature=4).learner(student, None)
    loss = single(images(said[None]))["distillation"]
    plain = torch.autograd.grad(loss, list(student.parameters()))
    of_factors = []
    for count in (1, 2, 4):
        made = learner(count)
        found = made(images(said.expand(count, 4, 5)))["distillation"]
        torch.testing.assert_close(found, loss)
        own = gradients(made, found)
        for one, other in zip(own, plain, strict=False):  # the network's come first
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        factors = own[len(plain) :]
        assert all(torch.isfinite(g).all() and (g == g[:1]).all() for g in factors)
        of_factors.append(torch.cat([g[0] for g in factors]))
    torch.testing.assert_close(of_factors[0], of_factors[1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(of_factors[0], of_factors[2], atol=1e-6, rtol=1e-4)


def test_labels_alone_at_temperature_one_are_plain_cross_entropy(learner, logits):
    made = learner(3, temperature=1.0, label_weight=1.0)
    batch = images(logits(3, 4, 5))
    losses = made(batch)
    assert losses["distillation"].item() == 0
    plain = F.cross_entropy(made.export()(batch.inputs), LABELS)
    torch.testing.assert_close(sum(losses.values(), torch.tensor(0.0)), plain)


def test_labels_are_the_mean_over_members_and_the_known(learner, logits):
    made = learner(2, apart=0.3, label_weight=0.25)
    batch = images(logits(2, 4, 5), torch.tensor([0, 1, -1, -1]))
    members = made.predictions(batch.inputs)[:, :2]
    terms = [F.cross_entropy(z, torch.tensor([0, 1])) for z in members]
    losses = made(batch)
    torch.testing.assert_close(losses["label"], 0.25 * torch.stack(terms).mean())
    without = made(images(logits(2, 4, 5), torch.full((4,), -1)))
    assert torch.equal(without["distillation"], losses["distillation"])
    assert without["label"].item() == 0
    assert "label" not in learner(2)(batch)


def test_labels_go_with_the_images_before_the_perturbation(learner, logits):
    made = learner(2, apart=0.3, label_weight=0.5)
    batch = images(logits(2, 4, 5))
    moved = replace(batch, inputs=batch.inputs + 1, clean=batch.inputs)
    plain, losses = made(batch), made(moved)
    torch.testing.assert_close(losses["label"], plain["label"])
    assert not torch.isclose(losses["distillation"], plain["distillation"])


def test_teachers_weights_are_their_members_shares(learner, logits):
    said = logits(2, 4, 5)
    made = learner(2, apart=0.3, weights=(0.25, 0.75))
    batch = images(said)
    members = made.predictions(batch.inputs)
    terms = [
        16 * F.kl_div((z / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="sum") / 4
        for t, z in zip(said, members, strict=True)
    ]
    expected = 0.25 * terms[0] + 0.75 * terms[1]
    torch.testing.assert_close(made(batch)["distillation"], expected)
    merged = made.student.merged((0.25, 0.75))(batch.inputs)
    torch.testing.assert_close(made.export()(batch.inputs), merged)


def test_the_export_is_the_mean_member_and_a_copy(learner, logits):
    made = learner(3, apart=0.3, architecture="convnet,width=4").train()
    batch = images(logits(3, 4, 5))
    network = made.export()
    assert not network.training
    assert made.student.network.training
    plain = build("convnet,width=4", 5, SHAPE)
    assert list(network.state_dict()) == list(plain.state_dict())
    expected = made.student.merged().eval()(batch.inputs)
    torch.testing.assert_close(network(batch.inputs), expected)
    with torch.no_grad():
        for value in made.state_dict().values():
            value.zero_()
    torch.testing.assert_close(network(batch.inputs), expected)
    assert made.stale_statistics


def test_predictions_are_the_members_logits(learner):
    made = learner(3, apart=0.3, architecture="convnet,width=4").eval()
    inputs = images(torch.zeros(3, 4, 5)).inputs
    said = made.predictions(inputs)
    assert said.shape == (3, 4, 5)
    for i, logits in enumerate(said):
        shares = [float(i == j) for j in range(3)]
        alone = made.student.merged(shares).eval()
        torch.testing.assert_close(logits, alone(inputs))


def test_batch_norm_sees_the_tiled_batch_and_is_shared(learner, logits):
    made = learner(2, apart=0.5, architecture="convnet,width=4").train()
    batch = images(logits(2, 4, 5))
    conv, norm = made.student.network.conv1, made.student.network.bn1
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    at = made.student.names.index("conv1")
    r, s = 1 + made.student.inputs[at], 1 + made.student.outputs[at]
    both = [
        conv(batch.inputs * r[i, :, None, None]) * s[i, :, None, None] for i in (0, 1)
    ]
    made(batch)
    assert norm.running_mean is not None
    expected = 0.1 * torch.cat(both).mean((0, 2, 3))  # from 0, momentum 0.1
    torch.testing.assert_close(norm.running_mean, expected.detach())


def test_the_engine_decays_factors_towards_one(learner):
    made = learner(3, apart=0.3)
    decayed, not_decayed = _optimizer(
        made, LatentEnsemble(weight_decay=0.1)
    ).param_groups
    assert decayed["weight_decay"] == 0.1
    assert not_decayed["weight_decay"] == 0
    factors = [*made.student.inputs, *made.student.outputs]
    ids = {id(parameter) for parameter in decayed["params"]}
    assert all(id(factor) in ids for factor in factors)


def test_everything_that_is_trained_is_in_the_state(learner, logits):
    made, batch = learner(2, apart=0.3), images(logits(2, 4, 5))
    other = learner(2)
    other.load_state_dict(made.state_dict())
    assert torch.equal(made(batch)["distillation"], other(batch)["distillation"])


def test_factors_start_where_they_are_told(learner):
    at_one, around = learner(2), learner(2, init_std=0.5)
    assert all(not f.any() for f in at_one.student.outputs)
    drawn = torch.cat([f.flatten() for f in around.student.inputs])
    assert drawn.std().item() == pytest.approx(0.5, rel=0.2)
