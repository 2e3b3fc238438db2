"""What torch.fx cannot trace: torch.export instead, or an error that says where."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.alignment import PermutationSpec, derive_permutations, prove
from metaensemble.alignment.graph import graph_of
from metaensemble.core.errors import InputError


class Asserting(nn.Module):
    """Any network, behind an assertion that torch.fx cannot follow."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-1] % 2 == 0
        return self.inner(images)


def freedom(spec: PermutationSpec) -> list[tuple[str, int, set[tuple[str, int, int]]]]:
    return [
        (
            group.name.removeprefix("inner."),
            group.size,
            {(a.tensor.removeprefix("inner."), a.dim, a.offset) for a in group.axes},
        )
        for group in spec.groups
    ]


def test_a_network_that_only_torch_export_can_trace(case_of):
    case = case_of("checked")
    assert graph_of(case.network, case.images().float()).exported
    groups = {group.name: (group.size, len(group.axes)) for group in case.spec.groups}
    # The group norm makes heads of channels; those of attention move as wholes.
    assert groups["stem.0"] == (6, 15)
    assert case.spec.group("stem.0").heads == 2
    assert groups["up"] == (5, 3)
    assert groups["attention"] == (2, 7)
    assert len(groups) == 4


def test_both_graphs_give_one_spec(case):
    if "vit" in case.name or case.name == "checked":
        pytest.skip("torch.export leaves no layers of attention: see the next test")
    again = derive_permutations(Asserting(case.network), case.shape)
    assert freedom(again) == freedom(case.spec)
    prove(Asserting(case.network), again, case.shape)


def test_attention_moves_its_heads_when_it_is_exported(case_of):
    case = case_of("vit_small_32x32,depth=1,dim=24,mlp_dim=16")
    network = Asserting(case.network)
    spec = derive_permutations(network, case.shape)
    prove(network, spec, case.shape)
    assert [group.size for group in spec.groups] == [24, 3, 16]
    spans = {axis.span for axis in spec.groups[1].axes}
    assert spans == {8}


class Overwriting(nn.Module):
    """Writes into channels by their number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        x[:, 1:3] = 0
        return self.head(F.relu(x).mean((2, 3)))


def test_channels_that_are_written_by_number_are_frozen():
    spec = derive_permutations(Overwriting(), (1, 4, 4))
    prove(Overwriting(), spec, (1, 4, 4))
    (group,) = spec.groups
    stretches = {(a.tensor, a.dim, a.offset, a.count) for a in group.axes}
    assert ("conv.weight", 0, 3, 3) in stretches
    assert any("fill_ has no rule" in why for _, why in spec.frozen)


def test_exporting_leaves_everything_as_it_is(case_of):
    network = case_of("checked").network
    network.train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    members = set(vars(network))
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derive_permutations(network, (3, 8, 8))
    assert network.training
    assert set(vars(network)) == members
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not logging.getLogger("torch").disabled
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    network.eval()


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        assert images.ndim == 4
        x = images.flatten(1)
        if x.sum() > 0:
            x = -x
        return self.head(x)


def test_control_flow_on_data_is_an_error_that_says_where(capfd):
    with pytest.raises(
        InputError,
        match=r"test_graph\.py:\d+, `if x.sum\(\) > 0:`.*by hand.*docs/alignment\.md",
    ):
        derive_permutations(Deciding(), (1, 2, 2))
    assert capfd.readouterr() == ("", "")
