import pytest
import torch

from metaensemble.data import TensorSplit
from metaensemble.engine import evaluate, prepare_statistics
from metaensemble.models import init_model


@pytest.fixture
def convnet(digits):
    return init_model("convnet,width=4", 10, digits.input_shape, 0)


def test_the_predictions_are_those_of_the_plain_images_in_eval_mode(convnet, digits):
    convnet.train()
    result = evaluate(convnet, digits.normalization, digits.validation)
    with torch.no_grad():
        logits = convnet.eval()(digits.normalization(digits.validation.images))
    assert torch.allclose(result.log_probs, logits.log_softmax(-1), atol=1e-6)
    right = logits.argmax(-1) == digits.validation.labels
    assert result.measured.accuracy == pytest.approx(right.float().mean().item())
    assert result.measured.count == 6


def test_the_objective_is_the_nll_or_the_divergence_from_the_ensemble(convnet, digits):
    result = evaluate(convnet, digits.normalization, digits.validation)
    assert result.objective(None) == result.measured.nll
    assert result.objective(result.log_probs) == pytest.approx(0, abs=1e-6)
    uniform = torch.full((6, 10), 0.1).log()
    expected = (uniform.exp() * (uniform - result.log_probs)).sum(-1).mean()
    assert result.objective(uniform) == pytest.approx(expected.item(), rel=1e-4)
    figures = result.figures(result.log_probs)
    assert figures["agreement"] == 1
    assert figures.keys() == {"accuracy", "nll", "agreement", "objective"}


def test_statistics_are_a_function_of_split_and_seed(digits):
    images = torch.randint(0, 256, (1200, 1, 8, 8)).to(torch.uint8)
    split = TensorSplit(images, torch.zeros(1200, dtype=torch.int64))

    def prepared(seed: int) -> dict[str, torch.Tensor]:
        network = init_model("convnet,width=4", 10, digits.input_shape, 0)
        torch.manual_seed(torch.seed())  # whatever the global generator says
        prepare_statistics(network, digits.normalization, split, seed)
        return network.state_dict()

    one, again, other = prepared(0), prepared(0), prepared(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["bn1.running_mean"], other["bn1.running_mean"])
    fresh = init_model("convnet,width=4", 10, digits.input_shape, 0).state_dict()
    assert not torch.equal(one["bn1.running_mean"], fresh["bn1.running_mean"])
    assert torch.equal(one["conv1.weight"], fresh["conv1.weight"])


def test_statistics_are_those_of_the_images(convnet, digits):
    prepare_statistics(convnet, digits.normalization, digits.train, 0)
    with torch.no_grad():
        features = convnet.conv1(digits.normalization(digits.train.images))
    mean = features.mean((0, 2, 3))
    assert torch.allclose(convnet.bn1.running_mean, mean, atol=1e-5)


def test_a_network_without_batch_norm_is_left_alone(digits):
    network = init_model("mlp,width=8", 10, digits.input_shape, 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare_statistics(network, digits.normalization, digits.train, 0)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
