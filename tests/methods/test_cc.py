import math

import pytest
import torch

from metaensemble.methods import CC
from metaensemble.methods.cc import KernelCorrelation, NeighbourCorrelation


def test_value_and_gradients_are_those_of_repdistiller(golden, features, layout, batch):
    known = golden("cc")
    own = torch.tensor(known["student"], requires_grad=True)
    student = features(vector=own)
    teacher = features(vector=torch.tensor(known["teacher"]))
    loss = NeighbourCorrelation(layout(student, teacher), 6)
    for whose, embedding in (("student", loss.student), ("teacher", loss.teacher)):
        weights = known["weights"][whose]
        embedding.weight.data = torch.tensor(weights["linear.weight"])
        embedding.bias.data = torch.tensor(weights["linear.bias"])
    value = loss(student, teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(known["loss"], rel=1e-5)
    torch.testing.assert_close(own.grad, torch.tensor(known["gradient"]))
    for whose, embedding in (("student", loss.student), ("teacher", loss.teacher)):
        for name, parameter in embedding.named_parameters():
            expected = torch.tensor(known["gradients"][whose][f"linear.{name}"])
            torch.testing.assert_close(parameter.grad, expected)


def test_the_kernel_is_the_gaussian_of_unit_vectors(logits):
    vectors = logits(5, 4)
    kernel = KernelCorrelation(order=10, gamma=0.4).kernel(vectors)
    directions = vectors / vectors.norm(dim=1, keepdim=True)
    apart = torch.cdist(directions, directions).square()
    torch.testing.assert_close(kernel, (-0.4 * apart).exp(), rtol=1e-4, atol=1e-5)


def test_order_two_is_the_papers_series(logits):
    cosine = torch.nn.functional.cosine_similarity(*logits(2, 1, 4), dim=-1).item()
    kernel = KernelCorrelation(order=2, gamma=0.4).kernel(logits(2, 1, 4)[:, 0])
    expected = math.exp(-0.8) * (1 + 0.8 * cosine + 0.32 * cosine**2)
    assert kernel[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_the_papers_form_is_zero_for_equal_relations(features, layout, batch, logits):
    vectors = logits(5, 4)
    student, teacher = features(vector=vectors), features(vector=3 * vectors.flip(1))
    loss = CC(form="paper").loss(layout(student, teacher))
    assert loss(student, teacher, batch([0])).item() < 1e-12
    moved = features(vector=vectors + 1)
    assert loss(moved, teacher, batch([0])).item() > 1e-4


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
def test_a_single_image_has_no_relations(features, layout, batch, logits, form):
    own = logits(1, 4).requires_grad_()
    student, teacher = features(vector=own), features(vector=logits(1, 6))
    value = CC(form=form).loss(layout(student, teacher))(student, teacher, batch([0]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-6
