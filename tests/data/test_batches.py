import pytest
import torch

from metaensemble.data import (
    TensorSplit,
    batch_indices,
    epoch_of,
    epoch_order,
    in_order,
    steps_per_epoch,
)


def test_epoch_order_is_a_permutation_fixed_by_seed_and_epoch():
    order = epoch_order(50, seed=1, epoch=2)
    assert order.sort().values.tolist() == list(range(50))
    assert torch.equal(order, epoch_order(50, seed=1, epoch=2))
    assert not torch.equal(order, epoch_order(50, seed=1, epoch=3))
    assert not torch.equal(order, epoch_order(50, seed=2, epoch=2))


def test_an_epoch_covers_everything_once():
    for epoch in (0, 1):
        steps = range(5 * epoch, 5 * epoch + 5)
        batches = [batch_indices(20, 4, seed=0, step=step) for step in steps]
        assert torch.cat(batches).sort().values.tolist() == list(range(20))


def test_batch_is_a_function_of_seed_and_step():
    forward = [batch_indices(30, 8, seed=5, step=step).tolist() for step in range(12)]
    torch.manual_seed(1)
    backward = [batch_indices(30, 8, 5, step).tolist() for step in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [batch_indices(30, 8, 6, step).tolist() for step in range(12)]


def test_incomplete_batch_is_dropped():
    assert steps_per_epoch(30, 8) == 3
    assert [epoch_of(30, 8, step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    epoch = torch.cat([batch_indices(30, 8, seed=0, step=step) for step in range(3)])
    assert len(epoch.unique()) == 24
    assert torch.equal(epoch, epoch_order(30, seed=0, epoch=0)[:24])


def test_few_images_make_one_batch_of_all():
    assert steps_per_epoch(3, 8) == 1
    assert epoch_of(3, 8, 7) == 7
    assert batch_indices(3, 8, seed=0, step=7).sort().values.tolist() == [0, 1, 2]


def test_changing_a_batch_does_not_change_the_next_call():
    batch = batch_indices(10, 5, seed=0, step=0)
    expected = batch.clone()
    batch.zero_()
    epoch_order(10, seed=0, epoch=0).zero_()
    assert torch.equal(batch_indices(10, 5, seed=0, step=0), expected)


def test_in_order(noise):
    split = TensorSplit(noise(5, 1, 2, 2), torch.zeros(5, dtype=torch.long))
    assert [chunk.tolist() for chunk in in_order(split, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (4, 0)])
def test_refuses_nothing(count, batch_size):
    with pytest.raises(ValueError, match=f"count {count} and batch_size {batch_size}"):
        batch_indices(count, batch_size, seed=0, step=0)
