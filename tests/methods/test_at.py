import pytest
import torch

from metaensemble.methods.at import AttentionLoss


def test_value_and_gradients_are_those_of_repdistiller(golden, features, batch):
    known = golden("at")
    own = [torch.tensor(m, requires_grad=True) for m in known["student"]]
    teacher = features([torch.tensor(m) for m in known["teacher"]])
    value = AttentionLoss()(features(own), teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-5)
    for map_, expected in zip(own, known["gradient"], strict=True):
        torch.testing.assert_close(
            map_.grad, torch.tensor(expected), rtol=1e-4, atol=1e-7
        )


def test_only_where_a_network_looks_counts(features, batch, logits):
    maps = logits(2, 3, 4, 4)
    student, teacher = features([maps]), features([-5 * maps.flip(1)])
    assert AttentionLoss()(student, teacher, batch([0])).item() < 1e-10
    other = features([maps.flip(3)])
    assert AttentionLoss()(student, other, batch([0])).item() > 1e-3


def test_dead_maps_and_single_pixels_have_finite_gradients(features, batch, logits):
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = AttentionLoss()(
        features([dead]), features([logits(2, 3, 4, 4)]), batch([0])
    )
    value.backward()
    assert value.item() == pytest.approx(1 / 16)
    assert dead.grad is not None
    assert dead.grad.abs().max() == 0
    pixel = AttentionLoss()(
        features([logits(2, 3, 1, 1)]), features([logits(2, 5, 1, 1)]), batch([0])
    )
    assert pixel.item() == pytest.approx(0, abs=1e-12)
