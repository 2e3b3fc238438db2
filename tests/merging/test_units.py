import pytest
import torch
from torch import fx, nn

from metaensemble.core.errors import InputError
from metaensemble.merging.units import Unit, find_units, traced
from metaensemble.models import build


def test_units_are_found_in_order():
    graph = fx.symbolic_trace(build("convnet,width=2", 5, (3, 8, 8)))
    units = find_units(graph)
    assert units[0] == Unit("conv1", "bn1", False)
    assert units[-1] == Unit("fc", None, True)
    assert [unit.output for unit in units] == ["bn1", "bn2", "bn3", "bn4", "fc"]


class Twice(nn.Module):
    """One layer runs twice, one norm has two users, one layer has an odd padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.shared = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.shared(self.stem(x)))
        return self.fc((self.norm(x) + x).mean((2, 3)))


def test_what_cannot_be_fitted_is_left_out():
    units = find_units(fx.symbolic_trace(Twice()))
    assert units == [Unit("norm", None, False), Unit("fc", None, True)]


class Checked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(InputError, match=r"only if torch.fx can trace .* repair or kd"):
        traced(Checked())
