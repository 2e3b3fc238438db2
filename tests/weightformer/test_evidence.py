"""Offsets, references given from outside, steps, and what images tell the generator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.core.states import State
from metaensemble.weightformer import (
    Evidence,
    Predictor,
    PredictorInfo,
    WeightFormer,
    derive_token_spec,
    gather_evidence,
)
from metaensemble.weightformer.evidence import FEATURES
from tests.weightformer.conftest import SHAPE

NAMES = ("convnet,width=2", "vit_small_32x32,depth=2,dim=8,heads=2,mlp_dim=4", "tied")
each_name = pytest.mark.parametrize("name", NAMES)
TARGET = torch.tensor([0.7, 0.2, 0.1])


def images(count: int = 12) -> Tensor:
    return torch.rand(count, *SHAPE, generator=generator("images"))


def loss(logits: Tensor) -> Tensor:
    return -(TARGET * logits.log_softmax(-1)).sum(-1).mean()


def same(first: State, second: State, names: Any) -> bool:
    return all(
        torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6)
        for name in names
    )


@pytest.fixture
def evidence_of(
    network_of: Callable[..., nn.Module],
) -> Callable[[str, list[State], State], Evidence]:
    def gather(name: str, teachers: list[State], at: State) -> Evidence:
        network = network_of(name)
        spec = derive_token_spec(network, SHAPE)
        return gather_evidence(network, spec, at, teachers, images(), loss)

    return gather


def predictor_of(weightformer: WeightFormer) -> Predictor:
    info = PredictorInfo.model_construct(
        config=weightformer.config, spec=weightformer.spec, architecture="this one"
    )
    return Predictor(weightformer, info)


@each_name
@pytest.mark.parametrize("head", ["direct", "residual", "mixture"])
def test_an_offset_is_added_to_every_weight(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    head: str,
):
    teachers = teachers_of(name)
    plain = generator_of(name, teachers, head=head)
    moved = generator_of(name, teachers, head=head, offset=True)
    moved.load_state_dict(plain.state_dict(), strict=False)
    assert same(plain(teachers)[0], moved(teachers)[0], plain.spec.shapes)
    with torch.no_grad():
        for offset in moved.offsets:
            offset.fill_(0.25)
    shifted = {name: t + 0.25 for name, t in plain(teachers)[0].items()}
    assert same(shifted, moved(teachers)[0], plain.spec.shapes)


@each_name
@pytest.mark.parametrize("head", ["residual", "mixture"])
@pytest.mark.parametrize("reference", ["first", "mean"])
def test_steps_lead_from_the_reference_to_the_prediction(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
    head: str,
    reference: str,
):
    teachers = teachers_of(name, 3)
    weightformer = generator_of(
        name, teachers, head=head, reference=reference, offset=True
    )
    predictor = predictor_of(weightformer)
    start, half, end = (predictor.predict(teachers, step=s) for s in (0.0, 0.5, 1.0))
    names = weightformer.spec.shapes
    assert same(start, weightformer.reference(teachers), names)
    middle = {name: (start[name] + end[name]) / 2 for name in names}
    assert same(half, middle, names)
    assert not same(start, end, names)
    asleep = generator_of(name, teachers, head=head, reference=reference, asleep=True)
    assert same(start, asleep(teachers)[0], names)


@each_name
def test_a_reference_that_is_given_takes_the_teachers_place(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    name: str,
):
    *teachers, base = teachers_of(name, 3)
    sleeping = generator_of(name, teachers, reference="regression_merge", asleep=True)
    names = sleeping.spec.shapes
    assert same(sleeping(teachers, base=base)[0], base, names)
    awake = generator_of(name, teachers, reference="regression_merge")
    usual = generator_of(name, teachers, reference="first")
    added = {
        name: usual(teachers)[0][name] - teachers[0][name] + base[name]
        for name in names
    }
    assert same(awake(teachers, base=base)[0], added, names)
    with pytest.raises(InputError, match="must be given that network"):
        awake(teachers)


@each_name
def test_the_gradient_is_that_of_the_loss_at_the_reference(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    evidence_of: Callable[..., Evidence],
    name: str,
):
    teachers = teachers_of(name)
    before = {key: value.clone() for key, value in teachers[0].items()}
    evidence = evidence_of(name, teachers, teachers[0])
    network = network_of(name)
    network.load_state_dict(teachers[0])
    network.train()
    loss(network(images())).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(evidence.gradient[key], parameter.grad, atol=1e-6)
    for key, value in before.items():
        assert torch.equal(value, teachers[0][key])


def test_activity_is_what_the_channels_do(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    evidence_of: Callable[..., Evidence],
):
    teachers = teachers_of("tied", 2)
    evidence = evidence_of("tied", teachers, teachers[0])
    spec = derive_token_spec(network_of("tied"), SHAPE)
    assert [a.shape for a in evidence.activity] == [
        (2, layer.rows, FEATURES) for layer in spec.layers
    ]
    first = next(i for i, layer in enumerate(spec.layers) if layer.name == "encode")
    outputs = torch.stack(
        [
            images().flatten(1) @ t["encode.weight"].T + t["encode.bias"]
            for t in teachers
        ]
    )
    scaled = outputs / outputs.square().mean().sqrt()
    mean, deviation, above, correlation = evidence.activity[first].unbind(-1)
    assert torch.allclose(mean, scaled.mean(1), atol=1e-5)
    assert torch.allclose(deviation, scaled.std(1, correction=0), atol=1e-5)
    assert torch.allclose(above, (outputs > 0).float().mean(1) - 0.5)
    pair = torch.stack([outputs[0, :, 3], outputs.mean(0)[:, 3]])
    assert torch.allclose(correlation[0, 3], torch.corrcoef(pair)[0, 1], atol=1e-4)


@each_name
def test_a_step_down_the_gradient_lowers_the_loss(
    network_of: Callable[..., nn.Module],
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    evidence_of: Callable[..., Evidence],
    name: str,
):
    teachers = teachers_of(name)
    weightformer = generator_of(
        name, teachers, reference="mean", data_tokens=12, asleep=True
    )
    names = weightformer.spec.shapes
    reference = weightformer.reference(teachers)
    evidence = evidence_of(name, teachers, reference)
    weightformer.standardise_evidence([evidence])
    asleep, _ = weightformer(teachers, evidence=evidence)
    assert same(asleep, reference, names)
    with torch.no_grad():
        weightformer.rates.fill_(0.01)
    written, _ = weightformer(teachers, evidence=evidence)
    network = network_of(name).train()
    with torch.no_grad():
        before = loss(functional_call(network, {**reference, **asleep}, (images(),)))
        after = loss(functional_call(network, written, (images(),)))
    assert after < before
    with pytest.raises(InputError, match="must be given images"):
        weightformer(teachers)


def test_evidence_follows_its_teacher(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    evidence_of: Callable[..., Evidence],
):
    teachers = teachers_of(NAMES[0], 3)
    weightformer = generator_of(
        NAMES[0], teachers, reference="mean", readout="pooled", data_tokens=12
    )
    at = weightformer.reference(teachers)
    evidence = evidence_of(NAMES[0], teachers, at)
    turned = teachers[1:] + teachers[:1]
    other = evidence_of(NAMES[0], turned, at)
    for mine, theirs in zip(evidence.activity, other.activity, strict=True):
        assert torch.allclose(mine.roll(-1, 0), theirs, atol=1e-5)
    one = weightformer(teachers, evidence=evidence)[0]
    assert same(one, weightformer(turned, evidence=other)[0], weightformer.spec.shapes)
    blind = Evidence(
        {n: torch.zeros_like(t) for n, t in evidence.gradient.items()},
        tuple(torch.zeros_like(a) for a in evidence.activity),
    )
    assert not same(
        one, weightformer(teachers, evidence=blind)[0], weightformer.spec.shapes
    )
