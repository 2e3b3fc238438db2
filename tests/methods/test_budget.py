import math

import torch
from torch import nn

from metaensemble.methods.budget import choose, macs_model, parameters_model, smallest
from metaensemble.methods.compaction import compact, prunable
from metaensemble.metrics import macs, parameters
from metaensemble.models import init_model

SHAPE = (3, 8, 8)


def made(architecture: str) -> nn.Module:
    return init_model(architecture, 5, SHAPE, 0)


def test_the_least_important_channels_go_until_the_budget_holds():
    network = made("mlp,width=10")
    channels = prunable(network, SHAPE)
    model = parameters_model(network, channels)
    importance = torch.cat([torch.arange(10.0), torch.arange(10.0).flip(0) + 5])
    for share in (0.2, 0.5, 0.9):
        budget = share * model.full
        live = choose(channels, importance, [(model, budget)], 0.1)
        first, second = live.split(channels.sizes)
        counts = channels.totals(live.double())
        assert parameters(compact(network, channels, live)[0]) <= budget
        # of each group the most important ones stay, and no other would still fit
        assert first.tolist() == sorted(first.tolist())
        assert second.tolist() == sorted(second.tolist(), reverse=True)
        for group in range(2):
            more = counts.clone()
            more[group] += 1
            full = counts[group] == channels.sizes[group]
            assert full or float(model(more)) > budget


def test_importance_counts_by_the_cost_that_it_saves():
    network = made("mlp,width=10")
    channels = prunable(network, SHAPE)  # a unit of the first layer costs the more
    model = parameters_model(network, channels)
    live = choose(channels, torch.ones(20), [(model, 0.5 * model.full)], 0.1)
    assert channels.totals(live.double()).tolist() == [4.0, 10.0]


def test_all_budgets_hold_and_a_fraction_of_each_group_stays():
    network = made("convnet,width=8")
    channels = prunable(network, SHAPE)
    costs = macs_model(network, channels, SHAPE), parameters_model(network, channels)
    fewest = smallest(channels, 0.25)
    assert fewest.tolist() == [math.ceil(0.25 * size) for size in channels.sizes]
    assert smallest(channels, 0.001).tolist() == [1.0] * len(channels.sizes)
    budgets = [(costs[0], 0.3 * costs[0].full), (costs[1], 0.12 * costs[1].full)]
    live = choose(
        channels,
        torch.rand(channels.count, generator=torch.Generator().manual_seed(0)),
        budgets,
        0.25,
    )
    small, _ = compact(network, channels, live)
    assert macs(small, SHAPE) <= budgets[0][1]
    assert parameters(small) <= budgets[1][1]
    assert bool((channels.totals(live.double()) >= fewest).all())
    everything = choose(
        channels,
        torch.rand(channels.count, generator=torch.Generator().manual_seed(0)),
        [(costs[0], 1e9)],
        0.25,
    )
    assert bool(everything.all())
