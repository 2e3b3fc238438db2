import pytest
import torch

from metaensemble.methods.irg import GraphLoss, edges, moved


def test_edges_are_squared_distances_by_the_largest():
    triangle = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    expected = torch.tensor([[0.0, 9, 16], [9, 0, 25], [16, 25, 0]]) / 25
    torch.testing.assert_close(edges(triangle), expected)


def test_one_stage_is_half_the_squared_error_by_the_batch(features, batch, logits):
    own, theirs = logits(4, 3, 2, 2), logits(4, 6, 4, 4)
    difference = edges(own.mean((2, 3))) - edges(theirs.mean((2, 3)))
    expected = difference.square().sum() / 8
    loss = GraphLoss(1.0)(features([own]), features([theirs]), batch([0]))
    torch.testing.assert_close(loss, expected)


def test_stages_of_one_width_are_compared_by_their_vertices(features, batch, logits):
    own = [logits(4, 3, 2, 2), logits(4, 3, 2, 2, seed=1)]
    theirs = [logits(4, 6, 2, 2), logits(4, 6, 2, 2, seed=1)]
    student, teacher = features(own), features(theirs)
    graphs = GraphLoss(0.0)(student, teacher, batch([0]))
    changes = [
        (first.mean((2, 3)) - second.mean((2, 3))).square().sum(1)
        for first, second in (own, theirs)
    ]
    difference = changes[0] / changes[0].max() - changes[1] / changes[1].max()
    expected = graphs + 0.5 * difference.square().sum() / 8
    torch.testing.assert_close(GraphLoss(0.5)(student, teacher, batch([0])), expected)


def test_stages_of_several_widths_are_compared_by_their_edges(features, batch, logits):
    own = [logits(4, 3, 2, 2), logits(4, 5, 2, 2)]
    theirs = [logits(4, 6, 2, 2), logits(4, 6, 2, 2, seed=1)]
    student, teacher = features(own), features(theirs)
    graphs = GraphLoss(0.0)(student, teacher, batch([0]))
    changes = [
        (edges(first.mean((2, 3))) - edges(second.mean((2, 3)))).square()
        for first, second in (own, theirs)
    ]
    expected = graphs + (changes[0] - changes[1]).square().sum() / 8
    torch.testing.assert_close(GraphLoss(1.0)(student, teacher, batch([0])), expected)


def test_equal_features_cost_nothing(features, batch, logits):
    same = features([logits(4, 3, 2, 2), logits(4, 3, 2, 2, seed=1)])
    assert GraphLoss(1.0)(same, same, batch([0])).item() == 0


@pytest.mark.parametrize("widths", [(3, 3), (3, 5)])
def test_rotation_translation_and_scale_change_nothing(features, batch, logits, widths):
    maps = [logits(5, w, 2, 2, seed=i) for i, w in enumerate(widths)]
    turns = [torch.linalg.qr(logits(w, w, seed=9)).Q for w in widths]
    turned = [
        3 * torch.einsum("bchw,cd->bdhw", m, turn) + 2
        for m, turn in zip(maps, turns, strict=True)
    ]
    loss = GraphLoss(1.0)(features(turned), features(maps), batch([0]))
    assert loss.item() < 1e-10
    other = [logits(5, w, 2, 2, seed=7 + i) for i, w in enumerate(widths)]
    assert GraphLoss(1.0)(features(other), features(maps), batch([0])).item() > 0.01


def test_the_gradient_is_that_of_the_loss(features, batch, logits):
    # the largest distance moves, too
    teacher = features([logits(4, 3, 1, 1, seed=1).double()])

    def loss(own):
        return GraphLoss(1.0)(features([own]), teacher, batch([0]))

    own = logits(4, 3, 1, 1).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (own,))


@pytest.mark.parametrize("count", [1, 4])
def test_one_image_or_equal_ones_have_finite_gradients(features, batch, logits, count):
    own = [
        logits(1, 3, 2, 2).expand(count, 3, 2, 2).clone().requires_grad_(),
        logits(1, 3, 2, 2).expand(count, 3, 2, 2).clone().requires_grad_(),
    ]
    theirs = features([logits(count, 3, 2, 2), logits(count, 3, 2, 2, seed=1)])
    value = GraphLoss(1.0)(features(own), theirs, batch([0]))
    value.backward()
    assert torch.isfinite(value)
    for maps in own:
        assert maps.grad is not None
        assert torch.isfinite(maps.grad).all()


def test_movement_is_by_the_largest():
    first = torch.zeros(3, 2)
    second = torch.tensor([[1.0, 0], [0, 2], [0, 0]])
    torch.testing.assert_close(moved(first, second), torch.tensor([0.25, 1, 0]))
