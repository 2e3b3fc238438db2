import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaensemble.methods import Batch, Mutual, Task
from metaensemble.methods.mutual import MutualLearner, mutual_loss
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
CONVNET = "convnet,width=4"


def made(**fields) -> MutualLearner:
    torch.manual_seed(0)
    task = Task(SHAPE, LABELS, CONVNET, num_classes=5)
    student = init_model(CONVNET, 5, SHAPE, 0)
    (stage,) = Mutual(**fields).stages(student, Ensemble(()), task)
    assert isinstance(stage.learner, MutualLearner)
    return stage.learner.train()


def images(labels: Tensor = LABELS) -> Batch:
    random = torch.Generator().manual_seed(0)
    return Batch(0, torch.randn(len(labels), *SHAPE, generator=random), labels)


def test_the_loss_is_that_of_the_paper_by_hand(logits):
    said = logits(3, 4, 5)
    p = said.softmax(-1)
    expected = sum(
        (p[j] * (p[j] / p[i]).log()).sum(-1).mean() / 2
        for i in range(3)
        for j in range(3)
        if j != i
    )
    torch.testing.assert_close(mutual_loss(said), expected)


def test_two_peers_at_a_temperature(logits):
    said = logits(2, 4, 5)
    p = (said / 3).softmax(-1)
    expected = 9 * ((p[0] - p[1]) * (p[0] / p[1]).log()).sum(-1).mean()
    torch.testing.assert_close(mutual_loss(said, 3.0), expected)


def test_the_targets_are_held_fixed(logits):
    said = logits(3, 4, 5).requires_grad_()
    mutual_loss(said).backward()
    with torch.no_grad():
        p = said.softmax(-1)
        # of KL(fixed p_j || p_i) by the logits of i: p_i - p_j
        expected = [p[i] - (p.sum(0) - p[i]) / 2 for i in range(3)]
    torch.testing.assert_close(said.grad, torch.stack(expected) / 4)


def test_identical_peers_teach_nothing_and_learn_as_alone():
    learner = made(peers=3)
    for peer in learner.peers[1:]:
        peer.load_state_dict(learner.peers[0].state_dict())
    alone = init_model(CONVNET, 5, SHAPE, 0).train()
    losses = learner(images())
    assert losses["mutual"].abs() < 1e-6
    (losses["mutual"] + losses["label"]).backward()
    F.cross_entropy(alone(images().inputs), LABELS).backward()
    for peer in learner.peers:
        for own, expected in zip(peer.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_labels_count_for_each_peer_and_unlabelled_images_for_the_rest():
    learner = made()
    losses = learner(images())
    said = learner.predictions(images().inputs)
    expected = sum(F.cross_entropy(own, LABELS) for own in said)
    torch.testing.assert_close(losses["label"], expected)
    losses = learner(images(torch.full((4,), -1)))
    assert losses["label"] == 0
    assert losses["mutual"] > 0


def test_peers_differ_in_their_first_weights():
    learner = made(peers=3)
    weights = [peer.get_parameter("conv2.weight") for peer in learner.peers]
    given = init_model(CONVNET, 5, SHAPE, 0).get_parameter("conv2.weight")
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[0], given)


def test_every_peer_is_exported_plain_and_the_first_is_the_student():
    learner = made(peers=3)
    learner(images())
    learner.eval()
    grown = learner.networks()
    assert [network.name for network in grown] == ["peer-0", "peer-1", "peer-2"]
    said = learner.predictions(images().inputs)
    for network, expected in zip(grown, said, strict=True):
        plain = init_model(CONVNET, 5, SHAPE, 9)
        plain.load_state_dict(network.network.state_dict())
        torch.testing.assert_close(plain.eval()(images().inputs), expected)
    torch.testing.assert_close(learner.export()(images().inputs), said[0])


def test_a_peer_alone_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Mutual(peers=1)
