"""Teachers that may come in any order and any number."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metaensemble.core.states import State
from metaensemble.weightformer import WeightFormer

NAMES = ("convnet,width=2", "vit_small_32x32,depth=2,dim=8,heads=2,mlp_dim=4", "tied")
each_attention = pytest.mark.parametrize("attention", ["full", "axial"])
each_head = pytest.mark.parametrize("head", ["direct", "residual", "mixture"])


def close(first: State, second: State) -> bool:
    return all(
        torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5)
        for name in first
    )


@pytest.fixture
def pooled_of(
    generator_of: Callable[..., WeightFormer],
) -> Callable[..., WeightFormer]:
    """A generator with the pooled readout, awake, its pooling too."""

    def make(name: str, teachers: list[State], **fields: Any) -> WeightFormer:
        fields = {"readout": "pooled", "reference": "mean", **fields}
        weightformer = generator_of(name, teachers, **fields)
        torch.nn.init.normal_(
            weightformer.pool.weight, generator=torch.Generator().manual_seed(0)
        )
        return weightformer

    return make


@pytest.mark.parametrize("name", NAMES)
@each_attention
@each_head
def test_the_order_of_the_teachers_changes_nothing(
    teachers_of: Callable[..., list[State]],
    pooled_of: Callable[..., WeightFormer],
    name: str,
    attention: str,
    head: str,
):
    teachers = teachers_of(name, 3)
    weightformer = pooled_of(name, teachers, attention=attention, head=head)
    written, _ = weightformer(teachers)
    for order in itertools.permutations(range(3)):
        assert close(written, weightformer([teachers[i] for i in order])[0])
    assert not close(written, weightformer(teachers[:2])[0])  # it does read them


def test_the_first_reference_is_not_symmetric(
    teachers_of: Callable[..., list[State]], pooled_of: Callable[..., WeightFormer]
):
    teachers = teachers_of(NAMES[0], 3)
    weightformer = pooled_of(NAMES[0], teachers, reference="first")
    written, _ = weightformer(teachers)
    assert close(written, weightformer([teachers[i] for i in (0, 2, 1)])[0])
    assert not close(written, weightformer([teachers[i] for i in (1, 0, 2)])[0])


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_copies_of_one_teacher_count_as_one(
    teachers_of: Callable[..., list[State]],
    pooled_of: Callable[..., WeightFormer],
    count: int,
):
    # In one axial block; in a second, [cross] tells how many it has seen.
    (teacher,) = teachers_of(NAMES[0], 1)
    weightformer = pooled_of(
        NAMES[0], [teacher], attention="axial", depth=1, cross=False
    )
    assert close(weightformer([teacher])[0], weightformer([teacher] * count)[0])


@each_attention
def test_the_number_may_differ_from_that_of_training(
    teachers_of: Callable[..., list[State]],
    pooled_of: Callable[..., WeightFormer],
    attention: str,
):
    teachers = teachers_of(NAMES[0], 8)
    weightformer = pooled_of(NAMES[0], teachers[:4], attention=attention)
    found = []
    for count in (1, 2, 3, 5, 8):
        written, _ = weightformer(teachers[:count])
        assert all(torch.isfinite(tensor).all() for tensor in written.values())
        found.append(written)
    assert not any(close(a, b) for a, b in itertools.combinations(found, 2))


REFERENCES = [
    {"head": "residual", "reference": "first"},
    {"head": "residual", "reference": "mean"},
    {"head": "residual", "reference": "aligned_mean"},
    {"head": "mixture"},
]


@each_attention
@pytest.mark.parametrize("readout", ["first", "pooled"])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: "-".join(r.values()))
def test_step_0_is_the_reference_exactly(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    attention: str,
    readout: str,
    centre: bool,
    reference: dict[str, str],
):
    for name in NAMES:
        teachers = teachers_of(name, 4)  # a quarter is exact
        asleep = generator_of(
            name,
            teachers,
            asleep=True,
            attention=attention,
            readout=readout,
            centre=centre,
            **reference,
        )
        written, _ = asleep(teachers)
        for key, tensor in written.items():
            stacked = torch.stack([state[key] for state in teachers])
            first = reference.get("reference") == "first"
            expected = stacked[0] if first else stacked.mean(0)
            if reference["head"] == "mixture":
                expected = (0.25 * stacked).sum(0)
            assert torch.equal(tensor, expected), key
