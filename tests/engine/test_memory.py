import sys

import pytest
import torch

from metaensemble.engine import memory
from metaensemble.engine.memory import peak_memory


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_the_peak_counts_what_was_given_back():
    before = peak_memory()["memory_mb"]
    assert 20 < before < 1_000_000
    size = before + 100
    block = bytearray(size * 2**20)
    block[::4096] = b"x" * len(block[::4096])  # pages count once they are touched
    del block
    assert size < peak_memory()["memory_mb"] < 2 * size + before


def test_cuda_is_told_of_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert "cuda_memory_mb" not in peak_memory()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**20 + 7)
    assert peak_memory()["cuda_memory_mb"] == 5


def test_macos_counts_bytes(monkeypatch: pytest.MonkeyPatch):
    there = peak_memory()["memory_mb"]
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert peak_memory()["memory_mb"] == there // 1024


def test_without_the_module_of_unix_nothing_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert "memory_mb" not in peak_memory()
