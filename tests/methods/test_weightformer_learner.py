from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.methods import Batch, WeightFormerLearner, WeightFormerMethod
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, ensemble_log_probs

TINY = WeightFormerMethod(width=8, heads=1, depth=1, reference="first")


@pytest.fixture
def zoo(make_member, tmp_path: Path) -> Ensemble:
    """Four members of one start."""
    first = make_member(tmp_path / "0.safetensors", 0)
    rest = (
        make_member(tmp_path / f"{seed}.safetensors", seed, start=first)
        for seed in (1, 2, 3)
    )
    return Ensemble((first, *rest))


@pytest.fixture
def network(digits):
    return init_model("mlp,width=8", 10, digits.input_shape, 0)


@pytest.fixture
def batch(digits) -> Batch:
    images = digits.normalization(digits.train.images[:5])
    random = torch.Generator().manual_seed(0)
    return Batch(
        0, images, digits.train.labels[:5], torch.randn(4, 5, 10, generator=random)
    )


def test_an_untrained_residual_generator_writes_its_reference(zoo, network, batch):
    learner = TINY.learner(network, zoo)
    losses = learner(batch)
    logits = zoo.members[0].network()(batch.inputs)
    assert batch.teacher_logits is not None
    target = ensemble_log_probs(batch.teacher_logits)
    expected = (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()
    assert torch.allclose(losses["divergence"], expected, rtol=1e-4)
    state = learner.export().state_dict()
    for name, tensor in zoo.members[0].state().items():
        assert torch.allclose(state[name], tensor, atol=1e-6)


def test_gradients_reach_the_generator_and_nothing_else(zoo, network, batch):
    learner = TINY.model_copy(update={"head": "direct"}).learner(network, zoo)
    sum(learner(batch).values(), torch.tensor(0.0)).backward()
    grads = [p.grad for p in learner.generator.blocks.parameters()]
    assert all(g is not None and float(g.abs().sum()) > 0 for g in grads)
    assert all(p.grad is None for p in network.parameters())
    trained = {id(p) for p in learner.parameters()}
    assert not trained & {id(p) for p in network.parameters()}


def test_the_student_networks_own_weights_play_no_part(zoo, network, batch, digits):
    torch.manual_seed(0)
    one = TINY.learner(network, zoo)
    torch.manual_seed(0)
    other = TINY.learner(init_model("mlp,width=8", 10, digits.input_shape, 9), zoo)
    assert torch.equal(one(batch)["divergence"], other(batch)["divergence"])


def test_labels_count_only_with_a_weight(zoo, network, batch):
    assert "label" not in TINY.learner(network, zoo)(batch)
    weighted = TINY.model_copy(update={"label_weight": 0.25})
    assert "label" in weighted.learner(network, zoo)(batch)


def test_the_shift_term_is_for_training_only(zoo, network, batch):
    learner = TINY.learner(network, zoo)
    assert "shift" in learner.train()(batch)
    assert "shift" not in learner.eval()(batch)
    without = TINY.model_copy(update={"shift_weight": 0.0})
    assert "shift" not in without.learner(network, zoo)(batch)


def test_a_fixed_set_is_read_whole_and_in_order(zoo, network):
    learner = TINY.learner(network, zoo)
    assert [learner.chosen(step) for step in range(3)] == [[0, 1, 2, 3]] * 3


def test_draws_are_a_function_of_seed_and_step(zoo, network):
    def draws(seed: int) -> list[list[int]]:
        learner = WeightFormerLearner(TINY, network, zoo, zoo, draw=(2, 3), seed=seed)
        return [learner.chosen(step) for step in range(30)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    sizes = {len(chosen) for chosen in draws(0)}
    assert sizes == {2, 3}
    assert all(len(set(chosen)) == len(chosen) for chosen in draws(0))
    assert {i for chosen in draws(0) for i in chosen} == {0, 1, 2, 3}


def test_export_writes_for_the_audience(zoo, network):
    audience = zoo.subset([2, 3])
    learner = WeightFormerLearner(TINY, network, zoo.subset([0, 1]), audience)
    state = learner.export().state_dict()
    for name, tensor in zoo.members[2].state().items():
        assert torch.allclose(state[name], tensor, atol=1e-6)


def test_auto_reference_follows_the_kinship(make_member, zoo, network, tmp_path):
    auto = TINY.model_copy(update={"reference": "auto"})
    strangers = Ensemble(
        tuple(make_member(tmp_path / f"s{seed}.safetensors", seed) for seed in (7, 8))
    )
    kin = zoo.subset([1, 2, 3])
    assert auto.learner(network, kin).generator.config.reference == "mean"
    assert auto.learner(network, strangers).generator.config.reference == "first"


def test_members_of_two_architectures_are_refused(make_member, network, tmp_path):
    mixed = Ensemble(
        (
            make_member(tmp_path / "a.safetensors", 0),
            make_member(tmp_path / "b.safetensors", 1, "mlp,width=16"),
        )
    )
    with pytest.raises(InputError, match=r"one architecture, but .*width=16"):
        TINY.learner(network, mixed)
