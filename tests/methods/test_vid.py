import pytest
import torch

from metaensemble.methods.vid import InformationLoss


def test_value_and_gradients_are_those_of_repdistiller(golden, features, layout, batch):
    known = golden("vid")
    own = [torch.tensor(m, requires_grad=True) for m in known["student"]]
    student = features(own)
    teacher = features([torch.tensor(m) for m in known["teacher"]])
    loss = InformationLoss(layout(student, teacher))
    for i, mean in enumerate(loss.means):
        weights = known["weights"][str(i)]
        start = torch.tensor(weights.pop("log_scale"))
        torch.testing.assert_close(loss.log_scales[i].detach(), start)
        mean.load_state_dict(
            {n.removeprefix("regressor."): torch.tensor(w) for n, w in weights.items()}
        )
    value = loss(student, teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-5)
    for map_, expected in zip(own, known["gradient"], strict=True):
        torch.testing.assert_close(
            map_.grad, torch.tensor(expected), rtol=1e-4, atol=1e-6
        )
    for i, mean in enumerate(loss.means):
        gradients = known["gradients"][str(i)]
        got = {f"regressor.{n}": p.grad for n, p in mean.named_parameters()}
        got["log_scale"] = loss.log_scales[i].grad
        assert got.keys() == gradients.keys()
        for name, gradient in got.items():
            expected = torch.tensor(gradients[name])
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def predicted(features, layout, batch):
    """The loss of a constant prediction, and how it depends on the variances."""

    def make(theirs, prediction, variance):
        student, teacher = features([torch.zeros_like(theirs)]), features([theirs])
        loss = InformationLoss(layout(student, teacher))

        class Constant(torch.nn.Module):
            def forward(self, maps):
                return prediction

        loss.means[0] = Constant()
        scale = torch.as_tensor(variance).sub(1e-5).expm1().log()
        loss.log_scales[0].data = scale.expand(theirs.shape[1]).clone()
        value = loss(student, teacher, batch([0]))
        value.backward()
        return value.item(), loss.log_scales[0].grad

    return make


def test_the_best_prediction_is_the_map_itself(predicted, logits):
    maps = logits(3, 4, 2, 2)
    best, _ = predicted(maps, maps, 2.0)
    assert best == pytest.approx(0.5 * torch.tensor(2.0).log().item())
    for seed in range(3):
        worse, _ = predicted(maps, maps + 0.1 * logits(3, 4, 2, 2, seed=seed), 2.0)
        assert worse > best


def test_the_best_variance_is_the_mean_squared_error_of_each_channel(predicted, logits):
    maps, guess = logits(3, 4, 2, 2), logits(3, 4, 2, 2, seed=1)
    errors = (maps - guess).square().mean((0, 2, 3))
    best, slope = predicted(maps, guess, errors)
    assert slope.abs().max() < 1e-5
    for factor in (0.8, 1.25):
        worse, slope = predicted(maps, guess, factor * errors)
        assert worse > best
        assert slope.abs().min() > 1e-3  # the gradient reaches every variance


def test_larger_maps_are_averaged_to_the_smaller(features, layout, batch, logits):
    student, teacher = features([logits(2, 3, 4, 4)]), features([logits(2, 5, 2, 2)])
    loss = InformationLoss(layout(student, teacher))
    small = features([torch.nn.functional.avg_pool2d(student.maps[0], 2)])
    torch.testing.assert_close(
        loss(student, teacher, batch([0])), loss(small, teacher, batch([0]))
    )
