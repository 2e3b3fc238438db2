"""Axial attention against a slow twin, and which attention is chosen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import State
from metaensemble.models import build
from metaensemble.weightformer import (
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
)
from metaensemble.weightformer.attention import Block

NAME = "convnet,width=2"


def attended(qkv: Tensor, query: int, keys: list[int], heads: int) -> Tensor:
    """Return what one token collects from some, head by head."""
    width = qkv.shape[1] // 3
    size = width // heads
    out = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        q, k, v = (part[:, at] for part in qkv.split(width, dim=1))
        scores = torch.stack([q[query] @ k[key] for key in keys]) / size**0.5
        out.append(scores.softmax(0) @ v[keys])
    return torch.cat(out)


def slow(block: Block, x: Tensor, teachers: int) -> Tensor:
    """Return the block's output, token by token."""
    length, heads = len(x), block.heads
    rows = (length - 1) // teachers
    place = {(n, j): 1 + n * rows + j for n in range(teachers) for j in range(rows)}
    x = x.clone()
    qkv = block.qkv_teachers(block.norm_teachers(x))
    met = {
        (n, j): attended(qkv, i, [place[m, j] for m in range(teachers)], heads)
        for (n, j), i in place.items()
    }
    for where, i in place.items():
        x[i] = x[i] + block.out_teachers(met[where])
    qkv = block.qkv(block.norm_attention(x))
    found = [attended(qkv, 0, list(range(length)), heads)]
    found += [
        attended(qkv, i, [0, *(place[n, k] for k in range(rows))], heads)
        for (n, _), i in place.items()
    ]
    x = x + block.out(torch.stack(found))
    hidden = nn.functional.gelu(block.up(block.norm_feedforward(x)))
    return x + block.down(hidden)


@pytest.mark.parametrize(("teachers", "rows"), [(1, 1), (1, 4), (3, 1), (3, 5)])
def test_a_block_is_its_slow_twin(teachers: int, rows: int):
    with seeded("block"):
        block = Block(8, 2, 2.0, 0.0, axial=True).double()
    random = generator("tokens")
    x = torch.randn(1 + teachers * rows, 8, generator=random, dtype=torch.float64)
    torch.testing.assert_close(block(x, teachers), slow(block, x, teachers))


def test_for_one_teacher_only_the_step_across_teachers_is_added():
    with seeded("block"):
        full = Block(8, 2, 2.0, 0.0)
        axial = Block(8, 2, 2.0, 0.0, axial=True)
    axial.load_state_dict(full.state_dict(), strict=False)
    nn.init.zeros_(axial.out_teachers.weight)
    nn.init.zeros_(axial.out_teachers.bias)
    x = torch.randn(6, 8, generator=generator("tokens"))
    torch.testing.assert_close(axial(x, 1), full(x, 1))


def test_in_one_block_a_channel_sees_its_own_teacher_and_its_own_place():
    with seeded("block"):
        block = Block(8, 2, 2.0, 0.0, axial=True)
    x = torch.randn(1 + 3 * 4, 8, generator=generator("tokens"))
    changed = x.clone()
    changed[1 + 1 * 4 + 2] = torch.randn(8, generator=generator("channel 2 of 2"))

    def moved() -> Tensor:
        return (block(changed, 3) != block(x, 3)).any(1)

    assert moved().all()  # first the same channel of all, then all channels of each
    nn.init.zeros_(block.out_teachers.weight)  # without the step across the teachers
    assert moved()[0]  # [cross] still sees all
    assert moved()[1:].view(3, 4).any(1).tolist() == [False, True, False]


def kind_of(architecture: str, **fields: Any) -> str:
    with torch.device("meta"):
        network = build(architecture, 10, (3, 32, 32))
    network = network.to_empty(device="cpu")
    spec = derive_token_spec(network, (3, 32, 32))
    with torch.device("meta"):
        config = WeightFormerConfig(width=8, heads=2, **fields)
        return WeightFormer(config, spec).config.attention


def test_auto_is_full_for_small_networks_and_axial_for_wide_ones():
    assert kind_of("resnet20") == "full"
    assert kind_of("convnet,width=64") == "full"  # 256 channels
    assert kind_of("convnet,width=65") == "axial"
    assert kind_of("resnet50") == "axial"
    assert kind_of("resnet50", attention="full") == "full"
    assert kind_of("resnet20", attention="axial") == "axial"


def test_full_attention_has_no_more_parameters_than_before(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of(NAME)
    full = generator_of(NAME, teachers).state_dict()
    axial = generator_of(NAME, teachers, attention="axial").state_dict()
    more = {name.split(".", 2)[2] for name in axial.keys() - full.keys()}
    assert not full.keys() - axial.keys()
    assert {name.split(".")[0] for name in more} == {
        "norm_teachers",
        "qkv_teachers",
        "out_teachers",
    }
