import pytest
import torch

from metaensemble.methods import FitNet
from metaensemble.methods.fitnet import HintLoss


def test_value_and_gradients_are_those_of_repdistiller(golden, features, layout, batch):
    known = golden("fitnet")
    own = torch.tensor(known["student"][0], requires_grad=True)
    student, teacher = features([own]), features([torch.tensor(known["teacher"][0])])
    loss = HintLoss(layout(student, teacher), [0])
    weights, gradients = known["weights"]["regressor"], known["gradients"]["regressor"]
    names = {"0.weight": "conv.weight", "0.bias": "conv.bias"}
    names |= {"1.weight": "bn.weight", "1.bias": "bn.bias"}
    regressor = loss.regressors[0]
    regressor.load_state_dict(
        {n: torch.tensor(weights[m]) for n, m in names.items()}, strict=False
    )
    value = loss(student, teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-5)
    expected = torch.tensor(known["gradient"][0])
    torch.testing.assert_close(own.grad, expected, rtol=1e-4, atol=1e-6)
    for name, parameter in regressor.named_parameters():
        expected = torch.tensor(gradients[names[name]])
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def maps(*shapes):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) for shape in shapes]


def test_the_middle_pair_is_matched_or_all_that_are_named(features, layout):
    student = features(maps((2, 3, 8, 8), (2, 4, 4, 4), (2, 5, 2, 2)))
    place = layout(student, student)
    assert FitNet().loss(place).places == (1,)
    named = FitNet(student_layers=("a", "b", "c"))
    assert named.loss(place).places == (0, 1, 2)


def test_larger_maps_are_averaged_to_the_smaller(features, layout, batch):
    (own,), (theirs,) = maps((2, 3, 4, 4)), maps((2, 5, 2, 2))
    student, teacher = features([own]), features([theirs])
    loss = HintLoss(layout(student, teacher), [0]).eval()
    pooled = own.unflatten(3, (2, 2)).mean(4).unflatten(2, (2, 2)).mean(3)
    expected = (loss.regressors[0](pooled) - theirs).square().mean()
    torch.testing.assert_close(loss(student, teacher, batch([0])), expected)


def test_without_relu_negative_maps_can_be_met(features, layout, batch):
    (own,) = maps((2, 3, 4, 4))
    student, teacher = features([own]), features([-own.abs()])
    place = layout(student, teacher)
    with_relu = HintLoss(place, [0], relu=True)
    without = HintLoss(place, [0], relu=False)
    without.load_state_dict(with_relu.state_dict())
    least = own.square().mean()  # what a prediction of 0 costs
    assert with_relu(student, teacher, batch([0])) >= least
    for parameter in without.parameters():
        parameter.data.zero_()
    without.regressors[0].get_parameter("1.bias").data.fill_(-0.1)
    assert without(student, teacher, batch([0])) < least


def test_one_pixel_of_one_image_is_no_error(features, layout, batch):
    student = features(maps((1, 3, 1, 1)))
    loss = HintLoss(layout(student, student), [0]).train()
    assert torch.isfinite(loss(student, student, batch([0])))
