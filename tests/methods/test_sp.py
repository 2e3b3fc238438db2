import pytest
import torch

from metaensemble.methods import SP
from metaensemble.methods.sp import SimilarityLoss, similarities


def rotation(size: int) -> torch.Tensor:
    random = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(random).Q


def test_value_and_gradients_are_those_of_repdistiller(golden, features, batch):
    known = golden("sp")
    own = torch.tensor(known["student"][0], requires_grad=True)
    teacher = features([torch.tensor(known["teacher"][0])])
    value = SimilarityLoss([0])(features([own]), teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-5)
    expected = torch.tensor(known["gradient"][0])
    torch.testing.assert_close(own.grad, expected, rtol=1e-4, atol=1e-7)


def test_equal_features_cost_nothing(features, batch, logits):
    same = features([logits(4, 3, 2, 2)])
    assert SimilarityLoss([0])(same, same, batch([0])).item() == 0


def test_rotation_and_scale_of_all_features_change_nothing(logits):
    flat = logits(4, 12)
    moved = 7 * flat @ rotation(12)
    torch.testing.assert_close(
        similarities(moved[..., None, None]), similarities(flat[..., None, None])
    )


def test_any_widths_and_sizes_go_together(features, batch, logits):
    student, teacher = features([logits(4, 3, 4, 4)]), features([logits(4, 7, 2, 2)])
    assert SimilarityLoss([0])(student, teacher, batch([0])).item() > 0


def test_the_last_pair_is_matched_or_all_that_are_named(features, layout, logits):
    both = features([logits(2, 3, 4, 4), logits(2, 4, 2, 2)])
    assert SP().loss(layout(both, both)).places == (1,)
    named = SP(teacher_layers=("a", "b"))
    assert named.loss(layout(both, both)).places == (0, 1)


def test_an_image_without_activations_gets_no_gradient_instead_of_a_huge_one(
    features, batch, logits
):
    maps = logits(4, 3, 2, 2)
    maps[0] = 0
    maps.requires_grad_()
    value = SimilarityLoss([0])(
        features([maps]), features([logits(4, 3, 2, 2, seed=1)]), batch([0])
    )
    value.backward()
    assert torch.isfinite(value)
    assert maps.grad is not None
    assert maps.grad.abs().max() < 1
