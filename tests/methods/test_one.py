import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.methods import Batch, One, Task
from metaensemble.methods.one import OneLearner, ramp_at
from metaensemble.models import build, init_model
from metaensemble.models.gated import weighed
from metaensemble.teachers import Ensemble

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
CONVNET = "convnet,width=4"


@pytest.fixture
def learner() -> Callable[..., OneLearner]:
    """A learner of three branches of a network for five classes."""

    def make(architecture: str = CONVNET, **fields: float) -> OneLearner:
        torch.manual_seed(0)
        task = Task(SHAPE, LABELS, architecture, num_classes=5)
        student = init_model(architecture, 5, SHAPE, 0)
        (stage,) = One(**fields).stages(student, Ensemble(()), task)  # pyright: ignore
        assert stage.name == "one"
        assert isinstance(stage.learner, OneLearner)
        return stage.learner.train()

    return make


def images(labels: Tensor = LABELS, step: int = 0, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(step, torch.randn(len(labels), *SHAPE, generator=random), labels)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(
        loss,
        list(module.parameters()),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


def same_heads(made: OneLearner) -> None:
    for branch in made.body.branches[1:]:
        branch.load_state_dict(made.body.branches[0].state_dict())


def one_hot(made: OneLearner) -> None:
    """Freeze the gate to the first branch."""
    with torch.no_grad():
        made.gate.norm.weight.zero_()
        made.gate.norm.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    made.gate.requires_grad_(False)


def test_the_gate_is_a_distribution_over_the_branches(learner):
    made = learner()
    value, logits = made.body(images().inputs)
    shares = made.gate(value)
    assert shares.shape == (4, 3)
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    scores = value.mean((2, 3)) @ made.gate.linear.weight.T + made.gate.linear.bias
    normal = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(shares, normal.relu().softmax(1))
    together = weighed(shares, logits)
    by_hand = sum(shares[:, i, None] * logits[i] for i in range(3))
    torch.testing.assert_close(together, by_hand)
    assert (together >= logits.min(0).values - 1e-6).all()
    assert (together <= logits.max(0).values + 1e-6).all()


def test_a_gate_all_of_whose_scores_are_negative_is_uniform_and_gets_no_gradient(
    learner,
):
    made = learner()
    with torch.no_grad():
        made.gate.norm.weight.zero_()
        made.gate.norm.bias.fill_(-1)
    value, logits = made.body(images().inputs)
    shares = made.gate(value)
    torch.testing.assert_close(shares, torch.full((4, 3), 1 / 3))
    loss = weighed(shares, logits).square().sum()
    assert all(not g.any() for g in gradients(loss, made.gate))


def test_the_losses_are_those_of_the_paper(learner):
    made = learner(ramp=0)
    batch = images()
    value, logits = made.body(batch.inputs)
    together = weighed(made.gate(value), logits)
    losses = made(batch)
    assert list(losses) == ["label", "ensemble", "distillation"]
    labels = sum(F.cross_entropy(z, LABELS) for z in logits)
    torch.testing.assert_close(losses["label"], labels)
    torch.testing.assert_close(losses["ensemble"], F.cross_entropy(together, LABELS))
    soft = (together / 3).softmax(1)
    terms = [
        9 * (soft * (soft.log() - (z / 3).log_softmax(1))).sum(1).mean() for z in logits
    ]
    torch.testing.assert_close(losses["distillation"], torch.stack(terms).sum())


def test_identical_branches_are_their_ensemble_for_any_gate(learner):
    made = learner(ramp=0)
    same_heads(made)
    batch = images()
    value, logits = made.body(batch.inputs)
    together = weighed(made.gate(value), logits)
    for branch in logits:
        torch.testing.assert_close(together, branch)
    losses = made(batch)
    assert losses["distillation"].item() == pytest.approx(0, abs=1e-5)
    found = gradients(losses["distillation"], made)
    assert all(g.abs().max() < 1e-4 for g in found)


def test_the_gate_learns_from_the_ensembles_labels_only(learner):
    made = learner(ramp=0)
    losses = made(images())
    for name in ("distillation", "label"):
        assert all(not g.any() for g in gradients(losses[name], made.gate))
    assert gradients(losses["ensemble"], made.gate.linear)[0].abs().max() > 1e-4
    # the target does not move: with it fixed by hand the gradients are the same
    batch = images()
    value, logits = made.body(batch.inputs)
    target = weighed(made.gate(value), logits).detach()
    soft = (target / 3).softmax(1)
    terms = [9 * F.cross_entropy(z / 3, soft) for z in logits]
    by_hand = gradients(torch.stack(terms).sum(), made.body)
    found = gradients(losses["distillation"], made.body)
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_gate_of_the_first_branch_alone_doubles_its_labels(learner):
    made = learner()
    one_hot(made)
    losses = made(images())
    loss = losses["label"] + losses["ensemble"]  # w = 0
    _, logits = made.body(images().inputs)
    for i, (branch, z) in enumerate(zip(made.body.branches, logits, strict=True)):
        plain = gradients(F.cross_entropy(z, LABELS), branch)
        for one, other in zip(gradients(loss, branch), plain, strict=True):
            expected = 2 * other if i == 0 else other
            torch.testing.assert_close(one, expected, atol=1e-6, rtol=1e-4)


def test_the_ramp_rises_from_exp_minus_five_to_one(learner):
    # the authors' code: 80 of 300 epochs, here of 10 steps each
    weights = [ramp_at(10 * epoch, 80 / 300 * 3000) for epoch in range(301)]
    assert weights[0] == pytest.approx(math.exp(-5)) == pytest.approx(0.0067, abs=1e-4)
    assert weights[40] == pytest.approx(math.exp(-1.25))
    assert weights[80:] == [1.0] * 221
    assert weights[:81] == sorted(set(weights))
    assert ramp_at(0, 0.0) == 1
    # in the loss: 1 step per epoch, 100 of them
    made = learner(ramp=0.5, epochs=100, batch_size=4)
    full = learner(ramp=0)(images())["distillation"]
    for step in (0, 25, 50, 99):
        made = learner(ramp=0.5, epochs=100, batch_size=4)
        found = made(images(step=step))["distillation"]
        torch.testing.assert_close(found, ramp_at(step, 50.0) * full)


def test_unlabelled_images_take_part_in_the_divergence_only(learner):
    made = learner(ramp=0)
    known, some = made(images()), made(images(torch.tensor([0, 1, -1, -1])))
    assert torch.equal(known["distillation"], some["distillation"])
    assert not torch.equal(known["label"], some["label"])
    none = made(images(torch.full((4,), -1)))
    assert none["label"].item() == none["ensemble"].item() == 0
    assert torch.equal(none["distillation"], known["distillation"])


def test_branches_start_from_other_weights_on_one_trunk(learner):
    made = learner()
    one, two, three = (made.body.plain(i).state_dict() for i in range(3))
    for name in ("conv1.weight", "conv3.weight"):
        assert torch.equal(one[name], two[name])
    for name in ("conv4.weight", "fc.weight"):
        assert not torch.equal(one[name], two[name])
        assert not torch.equal(two[name], three[name])
    student = init_model(CONVNET, 5, SHAPE, 0).state_dict()
    assert all(torch.equal(one[name], student[name]) for name in student)


@pytest.mark.parametrize(
    "architecture",
    [CONVNET, "mlp,width=8", "vit_small_32x32,depth=2,dim=16,heads=2,mlp_dim=16"],
)
def test_what_is_exported_is_what_was_trained(learner, architecture):
    made = learner(architecture)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for seed in range(3):  # statistics and weights move
        loss = torch.stack(list(made(images(seed=seed)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval().requires_grad_(False)  # attention takes another path with gradients
    inputs = images().inputs
    value, logits = made.body(inputs)
    together = weighed(made.gate(value), logits)
    *branches, gated = made.networks()
    assert [g.name for g in branches] == ["branch-0", "branch-1", "branch-2"]
    fresh = build(architecture, 5, SHAPE)
    for grown, expected in zip(branches, logits, strict=True):
        assert grown.member
        assert grown.architecture is None
        assert not grown.network.training
        assert all(p.requires_grad for p in grown.network.parameters())
        grown.network.requires_grad_(False)
        assert torch.equal(grown.network(inputs), expected)
        assert list(grown.network.state_dict()) == list(fresh.state_dict())
        count = sum(p.numel() for p in grown.network.parameters())
        assert count == sum(p.numel() for p in fresh.parameters())
    first = made.export().eval().requires_grad_(False)
    assert torch.equal(first(inputs), logits[0])
    assert torch.equal(made.predictions(inputs), logits)
    assert not gated.member
    assert gated.architecture == f"{architecture},branches=3"
    again = build(gated.architecture, 5, SHAPE)
    again.load_state_dict(gated.network.state_dict())
    for network in (gated.network, again):
        network.eval().requires_grad_(False)
        assert torch.equal(network(inputs), together)
    # they are copies
    with torch.no_grad():
        for value in made.state_dict().values():
            value.zero_()
    assert torch.equal(branches[1].network(inputs), logits[1])
    assert torch.equal(gated.network(inputs), together)


def test_a_slim_student_has_a_slim_gated_network(learner):
    slim = "conv1:1>3+bn1:3+conv2:3>8+conv3:8>5+bn3:5+conv4:5>16"
    made = learner(f"{CONVNET},slim={slim}").eval()
    gated = made.networks()[-1]
    branches = "".join(f"+branches.{i}.conv4:5>16" for i in range(3))
    assert gated.architecture == (
        f"{CONVNET},branches=3,slim=trunk.conv1:1>3+.bn1:3+.conv2:3>8+.conv3:8>5+.bn3:5"
        f"{branches}+gate.linear:5>3"
    )
    again = build(gated.architecture, 5, SHAPE)
    again.load_state_dict(gated.network.state_dict())
    inputs = images().inputs
    assert torch.equal(again.eval()(inputs), gated.network.eval()(inputs))


def test_a_batch_of_one_image_is_normalised_by_running_statistics(learner):
    made = learner("mlp,width=8")
    made(images())
    before = made.gate.norm.running_mean.clone()
    assert before.any()
    batch = images(torch.tensor([2]))
    losses = made(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    value, _ = made.body(batch.inputs)
    shares = made.gate(value)
    torch.testing.assert_close(shares, made.gate.eval()(value))
    assert torch.equal(made.gate.norm.running_mean, before)
    assert gradients(losses["ensemble"], made.gate.linear)[0].isfinite().all()


def test_everything_that_is_trained_is_in_the_state(learner):
    made, other = learner(), learner()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1
    other.load_state_dict(made.state_dict())
    batch = images()
    for one, two in zip(made(batch).values(), other(batch).values(), strict=True):
        assert torch.equal(one, two)


def test_a_report_says_how_the_network_was_split(learner):
    # convolutions 1>4, 4>8 and 8>8 with their norms; 8>16 with its norm, and fc
    trunk = (36 + 8) + (288 + 16) + (576 + 16)
    head = (8 * 16 * 9 + 32) + (16 * 5 + 5)
    assert learner().described() == (
        f"3 branches of {head:,} parameters share a trunk of {trunk:,}"
    )


def test_a_network_that_is_gated_already_is_refused(learner):
    with pytest.raises(InputError, match=r"one network for one, but .* leave out br"):
        learner(f"{CONVNET},branches=2")


@pytest.mark.parametrize(
    "fields", [{"branches": 1}, {"ramp": -0.1}, {"ramp": 1.1}, {"temperature": 0}]
)
def test_values_out_of_range_are_refused(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        One(**fields)


def test_perturbed_images_need_teachers():
    with pytest.raises(ValueError, match="only if there are teachers, but --pert"):
        One(perturbation="ods")
