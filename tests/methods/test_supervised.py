import torch
import torch.nn.functional as F

from metaensemble.methods import Supervised


def test_the_loss_is_the_cross_entropy_of_the_labels(student, batch, logits):
    z, labels = logits(4, 5), [0, 4, 2, 2]
    losses = Supervised().learner(student(z), None)(batch(labels))
    assert losses.keys() == {"label"}
    assert torch.allclose(losses["label"], F.cross_entropy(z, torch.tensor(labels)))


def test_smoothing_is_passed_on(student, batch, logits):
    z, labels = logits(4, 5), [0, 4, 2, 2]
    losses = Supervised(label_smoothing=0.2).learner(student(z), None)(batch(labels))
    expected = F.cross_entropy(z, torch.tensor(labels), label_smoothing=0.2)
    assert torch.allclose(losses["label"], expected)


def test_members_keep_their_last_state():
    # members are to be different, not to be selected on the images students are
    assert Supervised().selection == "last"
