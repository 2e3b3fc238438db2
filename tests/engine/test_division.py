"""Batches that are divided give the gradients of the whole."""

import pytest
import torch
from torch import nn

from metaensemble.core.distributed import ALONE, World
from metaensemble.core.errors import InputError
from metaensemble.engine.division import Division
from metaensemble.methods import CRD, KD, Blockwise, Supervised
from metaensemble.models import init_model


def gradients(
    digits, batches, accumulate: int, architecture: str
) -> list[torch.Tensor]:
    network = init_model(architecture, 10, digits.input_shape, 3)
    method = Supervised(accumulate=accumulate)
    learner = method.learner(network, None).train()
    division = Division.of(method, ALONE)
    took = division.gradients(learner, batches(), 2, 0, stop=lambda: False)
    losses = torch.tensor(took.loss)
    return [losses, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("accumulate", [2, 3, 16])
def test_parts_add_up_to_the_whole(digits, batches, accumulate):
    whole = gradients(digits, batches, 1, "mlp,width=8")
    parts = gradients(digits, batches, accumulate, "mlp,width=8")
    assert len(whole) == len(parts) > 4
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_batch_norm_sees_a_part_at_a_time(digits, batches):
    whole = gradients(digits, batches, 1, "convnet,width=4")
    parts = gradients(digits, batches, 2, "convnet,width=4")
    assert not torch.allclose(whole[1], parts[1], rtol=1e-3)


def test_one_part_is_the_batch_itself(digits, batches):
    """To the bit: existing runs are not to change."""
    network = init_model("convnet,width=4", 10, digits.input_shape, 3)
    learner = Supervised().learner(network, None).train()
    torch.stack(list(learner(batches()(2)).values())).sum().backward()
    expected = [p.grad for p in network.parameters() if p.grad is not None]
    found = gradients(digits, batches, 1, "convnet,width=4")[1:]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_parts_cover_a_batch_in_order(batches):
    source = batches()
    whole = source(3)
    parts = [source(3, part, 3) for part in range(3)]
    assert [len(part.labels) for part in parts] == [6, 5, 5]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)


def test_every_process_takes_its_own_parts():
    division = Division.of(Supervised(accumulate=2), World(1, 3))
    assert division.parts == 6


@pytest.mark.parametrize("method", [CRD(accumulate=2), Blockwise(accumulate=2)])
def test_methods_with_a_memory_keep_their_batches_whole(method):
    with pytest.raises(InputError, match=r"must stay whole, since it keeps a memory"):
        Division.of(method, ALONE)
    whole = method.model_copy(update={"accumulate": 1})
    with pytest.raises(InputError, match="divided into 2; run one process, without"):
        Division.of(whole, World(0, 2))


def test_a_batch_has_an_image_for_each_part():
    method = KD(batch_size=3, accumulate=2)
    with pytest.raises(InputError, match="each of its 4 parts, but --batch-size is 3"):
        Division.of(method, World(0, 2))


def test_fit_learns_with_accumulation(digits, batches, trained):
    network = init_model("mlp,width=8", 10, digits.input_shape, 3)
    method = Supervised(epochs=3, accumulate=2, selection="last")
    source = batches()
    learner = method.learner(network, None)
    before = loss_of(network, source)
    trained(learner, method, source)
    assert loss_of(network, source) < 0.9 * before


def loss_of(network: nn.Module, source) -> float:
    batch = source(0)
    return nn.functional.cross_entropy(network(batch.inputs), batch.labels).item()
