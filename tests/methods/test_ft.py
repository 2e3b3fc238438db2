import pytest
import torch

from metaensemble.methods import FT, Batch, Task
from metaensemble.methods.features import FeatureLearner
from metaensemble.methods.ft import FactorLoss, ParaphraserLearner
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble


def load(encoder, weights, prefix="encoder."):
    """Put the reference's weights, in their order, into a sequence of layers."""
    values = [torch.tensor(w) for n, w in weights.items() if n.startswith(prefix)]
    parameters = list(encoder.parameters())
    assert len(values) == len(parameters)
    for parameter, value in zip(parameters, values, strict=True):
        assert parameter.shape == value.shape
        parameter.data = value


def encoder(loss):
    return loss.paraphrasers[0].get_submodule("encoder")


def test_repdistillers_form_has_its_value_and_gradients(
    golden, features, layout, batch
):
    known = golden("ft")
    own = torch.tensor(known["student"][0], requires_grad=True)
    student, teacher = features([own]), features([torch.tensor(known["teacher"][0])])
    loss = FactorLoss(layout(student, teacher), [0], 0.5, "repdistiller")
    load(loss.translators[0], known["weights"]["translator"])
    load(loss.paraphrasers[0], known["weights"]["paraphraser"], "")
    value = loss(student, teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-4)
    expected = torch.tensor(known["gradient"][0])
    torch.testing.assert_close(own.grad, expected, rtol=1e-3, atol=1e-6)
    gradients = known["gradients"]["translator"].values()
    for parameter, gradient in zip(
        loss.translators[0].parameters(), gradients, strict=True
    ):
        expected = torch.tensor(gradient)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in loss.paraphrasers.parameters())


def test_the_paraphraser_is_repdistillers(golden, features, layout):
    weights, known = golden("ft")["weights"]["paraphraser"], golden("ft_paraphraser")
    teacher = features([torch.tensor(known["teacher"])])
    loss = FactorLoss(layout(teacher, teacher), [0], 0.5)
    load(loss.paraphrasers[0], weights, "")
    factor = encoder(loss)(teacher.maps[0])
    torch.testing.assert_close(factor, torch.tensor(known["factor"]))
    assert loss.reconstruction(teacher).item() == pytest.approx(known["loss"], rel=1e-5)


@pytest.mark.parametrize("form", ["paper", "repdistiller"])
def test_factors_have_norm_1_and_forget_a_positive_scale(
    features, layout, logits, form
):
    maps = logits(3, 4, 2, 2)
    loss = FactorLoss(layout(features([maps]), features([maps])), [0], 0.5, form)
    factor = loss.factor(maps)
    assert factor.shape == ((3, 16) if form == "paper" else (3, 4))
    torch.testing.assert_close(factor.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(loss.factor(7 * maps), factor)


def test_the_papers_form_is_the_mean_distance_of_unit_maps(
    features, layout, batch, logits
):
    student, teacher = features([logits(3, 4, 4, 4)]), features([logits(3, 6, 2, 2)])
    loss = FactorLoss(layout(student, teacher), [0], 0.5)
    own = torch.nn.functional.avg_pool2d(loss.translators[0](student.maps[0]), 2)
    theirs = encoder(loss)(teacher.maps[0])
    assert own.shape == theirs.shape == (3, 3, 2, 2)
    own, theirs = own.flatten(1), theirs.flatten(1)
    own = own / own.norm(dim=1, keepdim=True)
    theirs = theirs / theirs.norm(dim=1, keepdim=True)
    expected = (own - theirs).abs().mean()
    torch.testing.assert_close(loss(student, teacher, batch([0])), expected)


def test_the_rate_is_the_share_of_channels_at_least_one(features, layout, logits):
    both = features([logits(2, 6, 2, 2)])
    for rate, channels in ((0.5, 3), (1.0, 6), (0.01, 1)):
        loss = FactorLoss(layout(both, both), [0], rate)
        assert encoder(loss)(both.maps[0]).shape[1] == channels
        assert loss.translators[0](both.maps[0]).shape[1] == channels


def test_paraphrasers_are_trained_first_and_frozen_then(make_member, digits, tmp_path):
    members = tuple(
        make_member(tmp_path / f"{i}.safetensors", i, "convnet,width=4")
        for i in range(2)
    )
    student = init_model("convnet,width=4", 10, digits.input_shape, 5)
    method = FT(epochs=4, paraphraser_epochs=3, batch_size=8)
    task = Task(digits.input_shape, digits.train.labels)
    stages = method.stages(student, Ensemble(members), task)
    pixels = digits.train.batch(torch.arange(8))
    batch = Batch(0, digits.normalization(pixels), task.labels[:8], pixels=pixels)

    first = next(stages)
    assert isinstance(first.learner, ParaphraserLearner)
    assert first.learner.preparation
    assert first.settings.epochs == 3
    assert first.learner.export() is student
    trained = list(first.learner.parameters())
    assert all(p.requires_grad for p in trained)
    assert not {id(p) for p in trained} & {id(p) for p in student.parameters()}
    optimizer = torch.optim.Adam(trained, lr=0.01)
    errors = []
    for _ in range(20):
        (error,) = first.learner(batch).values()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]
    assert all(p.grad is None for p in student.parameters())

    second = next(stages)
    assert isinstance(second.learner, FeatureLearner)
    assert second.settings is method
    assert not any(p.requires_grad for p in trained)
    # what the first stage trained is what the second uses, and saves
    state = second.learner.state_dict()
    kept = state["losses.0.paraphrasers.0.encoder.0.weight"]
    assert kept.data_ptr() == trained[0].data_ptr()
    sum(second.learner(batch).values(), torch.tensor(0.0)).backward()
    loss = second.learner.losses[1]
    assert isinstance(loss, FactorLoss)
    assert all(p.grad is not None for p in loss.translators.parameters())
    assert next(stages, None) is None
