import math
from dataclasses import replace

import pytest
import torch

from metaensemble.methods import CRD
from metaensemble.methods.crd import ContrastiveLoss, Negatives


@pytest.fixture
def make(features, layout):
    """Build a loss for so many images, its vectors 3 and 4 wide."""

    def build(labels, **fields):
        student = features(vector=torch.zeros(1, 3))
        teacher = features(vector=torch.zeros(1, 4))
        torch.manual_seed(0)
        method = CRD.model_validate({"embedding": 6, "negatives": 3} | fields)
        loss = method.loss(layout(student, teacher, labels))
        assert isinstance(loss, ContrastiveLoss)
        return loss.train()

    return build


def test_value_gradients_and_memories_are_those_of_repdistiller(golden, make):
    known = golden("crd")
    loss = make([0] * 8)
    embeddings = {"student": loss.embed_student, "teacher": loss.embed_teacher}
    for whose, embedding in embeddings.items():
        weights = known["weights"][whose]
        embedding.weight.data = torch.tensor(weights["linear.weight"])
        embedding.bias.data = torch.tensor(weights["linear.bias"])
    loss.student_bank = torch.tensor(known["banks"]["student"])
    loss.teacher_bank = torch.tensor(known["banks"]["teacher"])
    for step in known["steps"]:
        own = torch.tensor(step["student"], requires_grad=True)
        loss.zero_grad()
        value = loss.contrast(
            own,
            torch.tensor(step["teacher"]),
            torch.tensor(step["indices"]),
            torch.tensor(step["others"]),
        )
        value.backward()
        assert value.item() == pytest.approx(step["loss"], rel=1e-5)
        expected = torch.tensor(step["gradient"])
        torch.testing.assert_close(own.grad, expected, rtol=1e-4, atol=1e-5)
        for whose, embedding in embeddings.items():
            for name, parameter in embedding.named_parameters():
                expected = torch.tensor(step["gradients"][whose][f"linear.{name}"])
                torch.testing.assert_close(
                    parameter.grad, expected, rtol=1e-4, atol=1e-5
                )
        scales = torch.tensor(step["scales"])
        torch.testing.assert_close(loss.log_scale.exp(), scales, rtol=1e-5, atol=0.1)
        for bank, whose in (("student_bank", "student"), ("teacher_bank", "teacher")):
            expected = torch.tensor(step["banks"][whose])
            torch.testing.assert_close(getattr(loss, bank), expected)


def run(loss, batch, logits, indices=(0, 1), seed=0):
    vectors = logits(len(indices), 3, seed=seed), logits(len(indices), 4, seed=seed + 1)
    images = replace(batch([0] * len(indices)), indices=torch.tensor(indices))
    return vectors, images


def test_memories_hold_unit_vectors_of_the_images_seen(make, features, batch, logits):
    loss = make([0, 1] * 4)
    before = loss.student_bank.clone()
    vectors, images = run(loss, batch, logits, (2, 5))
    loss(features(vector=vectors[0]), features(vector=vectors[1]), images)
    for bank in (loss.student_bank, loss.teacher_bank):
        torch.testing.assert_close(bank[[2, 5]].norm(dim=1), torch.ones(2))
    untouched = [0, 1, 3, 4, 6, 7]
    assert torch.equal(loss.student_bank[untouched], before[untouched])
    # the new vector is the direction of the mean of old and embedded
    embedded = loss.embed_student(vectors[0])
    mixed = 0.5 * before[[2, 5]] + 0.5 * embedded / embedded.norm(dim=1, keepdim=True)
    expected = mixed / mixed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(loss.student_bank[[2, 5]], expected)


def test_the_scale_is_set_once_and_saved(make, features, batch, logits):
    loss = make([0, 1] * 4)
    vectors, images = run(loss, batch, logits)
    assert not loss.scaled
    loss(features(vector=vectors[0]), features(vector=vectors[1]), images)
    scale = loss.log_scale.clone()
    other = make([0, 1] * 4)
    other.load_state_dict(loss.state_dict())
    assert other.scaled
    vectors, images = run(loss, batch, logits, seed=5)
    values = []
    for network in (loss, other):
        torch.manual_seed(3)
        values.append(
            network(features(vector=vectors[0]), features(vector=vectors[1]), images)
        )
        assert torch.equal(network.log_scale, scale)
    assert torch.equal(*values)
    assert torch.equal(loss.teacher_bank, other.teacher_bank)


def test_evaluation_changes_nothing(make, features, batch, logits):
    loss = make([0, 1] * 4).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    vectors, images = run(loss, batch, logits)
    loss(features(vector=vectors[0]), features(vector=vectors[1]), images)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name])


def test_it_is_the_log_of_h_as_the_paper_writes_it(make, logits):
    loss = make([0] * 8).eval()
    own, theirs = logits(2, 3), logits(2, 4)
    places, others = torch.tensor([0, 1]), torch.tensor([[2, 3, 4], [5, 6, 7]])
    value = loss.contrast(own, theirs, places, others)
    expected = 0.0
    for vectors, embed, bank in (
        (own, loss.embed_student, loss.teacher_bank),
        (theirs, loss.embed_teacher, loss.student_bank),
    ):
        unit = embed(vectors)
        unit = unit / unit.norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
        chosen = bank[torch.cat([places[:, None], others], 1)]
        scores = (torch.einsum("bd,bkd->bk", unit, chosen) / 0.07).exp()
        scores = scores / (8 * scores.mean())
        h = scores / (scores + 3 / 8)
        assert (h > 0).all()
        assert (h < 1).all()
        expected -= (h[:, 0].log().sum() + (1 - h[:, 1:]).log().sum()) / 2
    torch.testing.assert_close(value, expected)


def test_a_nearer_pair_costs_less(make):
    loss = make([0] * 8, tau=0.5).eval()
    loss.log_scale, loss.scaled = torch.zeros(2), torch.tensor(True)
    vectors = torch.eye(3)[:1], torch.eye(4)[:1]
    places, others = torch.tensor([0]), torch.tensor([[2, 3, 4]])
    own = loss.embed_student(vectors[0])[0].detach()
    values = []
    for share in (-1.0, 0.0, 1.0):
        loss.teacher_bank[0] = share * own / own.norm()
        values.append(loss.contrast(*vectors, places, others).item())
    assert values == sorted(values, reverse=True)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 4, [0] * 11 + [1], [-1] * 12, [0] * 12, [3, -1, 3, 0] * 3]
)
def test_negatives_are_other_images_of_other_labels(labels):
    torch.manual_seed(0)
    negatives = Negatives(torch.tensor(labels), 4000)
    drawn = negatives.draw(torch.arange(12))
    alone = set(labels) == {0}  # one label: any other image will do
    for i, row in enumerate(drawn):
        allowed = {
            j
            for j in range(12)
            if j != i and (alone or labels[i] < 0 or labels[j] != labels[i])
        }
        counts = torch.bincount(row, minlength=12)
        assert {j for j in range(12) if counts[j]} == allowed
        mean = 4000 / len(allowed)
        for j in allowed:  # equal chances: within five standard deviations
            assert abs(counts[j].item() - mean) <= 5 * math.sqrt(mean)


def test_there_are_no_more_negatives_than_other_images(make):
    loss = make([0, 1, 2, 3], negatives=16_384)
    assert loss.negatives.draw(torch.arange(4)).shape == (4, 3)


def test_draws_follow_the_global_generator(make):
    loss = make([0, 1] * 4)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(loss.negatives.draw(torch.arange(8)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_only_image_of_a_data_set_has_no_negatives(make, features, batch, logits):
    loss = make([0])
    vectors, images = run(loss, batch, logits, (0,))
    own = vectors[0].requires_grad_()
    value = loss(features(vector=own), features(vector=vectors[1]), images)
    value.backward()
    assert value.item() == 0
    assert own.grad is not None
    assert own.grad.abs().max() == 0
