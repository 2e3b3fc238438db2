import pytest
import torch

from metaensemble.methods import RKD
from metaensemble.methods.rkd import angles, distances


def loss_of(features, layout, batch, own, theirs, **fields):
    student, teacher = features(vector=own), features(vector=theirs)
    return RKD(**fields).loss(layout(student, teacher))(student, teacher, batch([0]))


def test_value_and_gradient_are_those_of_repdistiller(golden, features, layout, batch):
    known = golden("rkd")
    own = torch.tensor(known["student"], requires_grad=True)
    value = loss_of(features, layout, batch, own, torch.tensor(known["teacher"]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-4)
    expected = torch.tensor(known["gradient"])
    torch.testing.assert_close(own.grad, expected, rtol=1e-3, atol=1e-5)


def test_rotation_translation_and_scale_change_nothing(features, layout, batch, logits):
    vectors = logits(5, 4)
    turn = torch.linalg.qr(logits(4, 4, seed=1)).Q
    moved = 3 * vectors @ turn + 2
    assert loss_of(features, layout, batch, moved, vectors).item() < 1e-8
    bent = vectors * torch.tensor([1.0, 1, 1, 5])
    assert loss_of(features, layout, batch, bent, vectors).item() > 0.1


def test_any_widths_go_together(features, layout, batch, logits):
    assert loss_of(features, layout, batch, logits(5, 4), logits(5, 9)).item() > 0


def test_distances_and_angles_are_those_of_a_triangle():
    triangle = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    differences = triangle[None] - triangle[:, None]
    apart = distances(differences)
    torch.testing.assert_close(apart[0], torch.tensor([0.0, 3, 4]) / 4)
    cosines = angles(differences)
    assert cosines[0, 1, 2].item() == pytest.approx(0, abs=1e-6)
    assert cosines[1, 0, 2].item() == pytest.approx(3 / 5)


def test_weights_choose_the_terms(features, layout, batch, logits):
    own, theirs = logits(5, 4), logits(5, 4, seed=1)
    case = features, layout, batch, own, theirs
    apart = loss_of(*case, distance_weight=1, angle_weight=0)
    turned = loss_of(*case, distance_weight=0, angle_weight=1)
    both = loss_of(*case)
    torch.testing.assert_close(both, 25 * apart + 50 * turned)
    assert loss_of(*case, distance_weight=0, angle_weight=0).item() == 0


@pytest.mark.parametrize("count", [1, 4])
def test_one_image_or_equal_ones_have_finite_gradients(
    features, layout, batch, logits, count
):
    own = logits(1, 4).expand(count, 4).clone().requires_grad_()
    loss_of(features, layout, batch, own, logits(count, 6, seed=1)).backward()
    assert own.grad is not None
    assert own.grad.abs().max() == 0
