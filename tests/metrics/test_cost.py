import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.metrics import latency_ms, macs, parameters, peak_memory_mb


class Attention(nn.Module):
    """Self-attention over (batch, 5, 8) with two heads."""

    def __init__(self, need_weights: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


def test_parameters_count_shared_tensors_once():
    first = nn.Linear(4, 4)
    second = nn.Linear(4, 4)
    second.weight = first.weight
    assert parameters(nn.Sequential(first, second, nn.BatchNorm1d(4))) == 16 + 8 + 8


def test_macs_of_convolution_and_linear_worked_by_hand():
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),  # 8 maps of 4 x 4, each 2 channels x 3 x 3
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    assert macs(module, (4, 6, 6)) == 8 * 16 * 2 * 9 + 8 * 16 * 10


@pytest.mark.parametrize("need_weights", [False, True])
def test_macs_of_attention_worked_by_hand(need_weights: bool):
    projections = 5 * 8 * (3 * 8) + 5 * 8 * 8  # in (q, k, v) and out
    products = 2 * 5 * 5 * 8  # q k^T and a v, heads together
    assert macs(Attention(need_weights), (5, 8)) == projections + products


def test_macs_of_a_transformer_layer_count_its_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    attention = macs(Attention(False), (5, 8))
    assert macs(layer.eval(), (5, 8)) == attention + 2 * 5 * 8 * 16


def test_macs_leave_the_module_as_it_was():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[1].eval()
    macs(module, (3,))
    assert (module.training, module[0].training, module[1].training) == (True, True, 0)
    assert int(module.get_buffer("0.num_batches_tracked")) == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_is_the_median_in_milliseconds():
    calls: list[float] = []

    def work():
        calls.append(0)
        time.sleep(0.05 if len(calls) == 3 else 0.002)  # one slow outlier

    assert 2 <= latency_ms(work, repeats=5, warmup=2) < 40
    assert len(calls) == 7


def test_latency_without_a_repeat_is_refused():
    with pytest.raises(InputError, match="repeats must be at least 1, but is 0"):
        latency_ms(lambda: None, repeats=0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_lies_between_resident_now_and_the_systems_maximum():
    held = torch.ones(16_000_000)  # 64 MB, touched
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = resident_pages * resource.getpagesize() / 1e6
    peak = peak_memory_mb()
    assert peak is not None
    assert resident > held.nbytes / 1e6
    # a percent of slack: the kernel counts pages per thread and adds up now and then
    assert peak >= 0.99 * resident
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert peak <= 1.01 * maximum
