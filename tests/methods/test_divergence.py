import math

import pytest
import torch

from metaensemble.methods.divergence import kl_divergence, label_loss

HALF = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
SKEWED = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()


def test_forward_and_reverse_by_hand():
    # the mean over two images, of which the second has no divergence
    forward = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    reverse = (0.5 * math.log(1 / 1.5) + 0.5 * math.log(2)) / 2
    assert float(kl_divergence(SKEWED, HALF, "forward")) == pytest.approx(forward)
    assert float(kl_divergence(SKEWED, HALF, "reverse")) == pytest.approx(reverse)


def test_it_is_zero_for_equals_and_positive_else(logits):
    one = logits(7, 5, seed=1).log_softmax(-1)
    other = logits(7, 5, seed=2).log_softmax(-1)
    for direction in ("forward", "reverse"):
        assert float(kl_divergence(one, one, direction)) == pytest.approx(0, abs=1e-7)
        assert float(kl_divergence(one, other, direction)) > 0


def test_label_loss_by_hand_leaves_out_unlabelled_images():
    scores = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [5.0, -5.0]])
    labels = torch.tensor([0, 1, -1])
    expected = (math.log(2) - math.log(0.75)) / 2
    assert float(label_loss(scores, labels)) == pytest.approx(expected)


def test_label_loss_without_labels_is_zero_with_a_zero_gradient():
    scores = torch.ones(2, 3, requires_grad=True)
    loss = label_loss(scores, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_smoothing_moves_mass_to_all_classes(logits):
    scores, labels = logits(4, 3), torch.tensor([0, 1, 2, 0])
    target = 0.9 * torch.eye(3)[labels] + 0.1 / 3
    expected = -(target * scores.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(label_loss(scores, labels, 0.1), expected)
