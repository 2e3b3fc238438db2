"""Large networks: layers one at a time, recomputed, in chunks, in half precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.seeds import generator
from metaensemble.core.states import LazyState, State, hash_state
from metaensemble.data import Normalization
from metaensemble.weightformer import Predictor, PredictorInfo, WeightFormer
from metaensemble.weightformer import network as network_module

NAME = "convnet,width=2"
FORMS = (
    {"attention": "full"},
    {"attention": "axial", "readout": "pooled", "head": "mixture"},
)
each_form = pytest.mark.parametrize("form", FORMS, ids=["full", "axial"])


@pytest.fixture
def teachers(teachers_of: Callable[..., list[State]]) -> list[State]:
    return teachers_of(NAME, 3)


@pytest.fixture
def predictor_of(
    generator_of: Callable[..., WeightFormer], teachers: list[State]
) -> Callable[..., Predictor]:
    def make(**fields: Any) -> Predictor:
        network = generator_of(NAME, teachers, **fields)
        info = PredictorInfo(
            config=network.config,
            spec=network.spec,
            architecture=NAME,
            classes=("a", "b", "c"),
            input_shape=(1, 8, 8),
            normalization=Normalization(mean=(0.3,), std=(0.4,)),
            trained_on=(),
        )
        return Predictor(network, info)

    return make


@each_form
def test_states_read_from_their_files_give_the_same_student(
    tmp_path: Path,
    teachers: list[State],
    predictor_of: Callable[..., Predictor],
    form: dict[str, Any],
):
    predictor = predictor_of(**form)
    expected = hash_state(predictor.predict(teachers))
    safe, pickled = [], []
    for i, state in enumerate(teachers):
        save_file(state, tmp_path / f"{i}.safetensors")
        torch.save(state, tmp_path / f"{i}.pt")
        safe.append(LazyState(tmp_path / f"{i}.safetensors"))
        pickled.append(LazyState(tmp_path / f"{i}.pt"))
    assert hash_state(predictor.predict(safe)) == expected
    assert hash_state(predictor.predict(pickled)) == expected


@each_form
def test_a_prediction_is_what_training_writes(
    teachers: list[State], predictor_of: Callable[..., Predictor], form: dict[str, Any]
):
    predictor = predictor_of(**form)
    written, _ = predictor.network(teachers)
    predicted = predictor.predict(teachers)
    assert all(torch.equal(predicted[name], written[name]) for name in written)


@each_form
def test_chunks_change_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
    teachers: list[State],
    predictor_of: Callable[..., Predictor],
    form: dict[str, Any],
):
    predictor = predictor_of(**form)
    whole = predictor.predict(teachers)
    for size in (1, 50, 300):  # a token, a few, part of a layer
        monkeypatch.setattr(network_module, "CHUNK", size)
        parts = predictor.predict(teachers)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def gradients(
    weightformer: WeightFormer, student: nn.Module, teachers: list[State], **how: Any
) -> dict[str, Tensor]:
    weightformer.zero_grad()
    images = torch.randn(6, 1, 8, 8, generator=generator("images"))
    torch.manual_seed(0)  # of the dropout
    written, consistency = weightformer(teachers, shift=1, **how)
    logits = functional_call(student, written, (images,))
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])) + consistency
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in weightformer.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    return found


@each_form
def test_recomputing_gives_the_same_gradients(
    network_of: Callable[..., nn.Module],
    teachers: list[State],
    generator_of: Callable[..., WeightFormer],
    form: dict[str, Any],
):
    student = network_of(NAME)
    weightformer = generator_of(NAME, teachers, dropout=0.3, **form).train()
    kept = gradients(weightformer, student, teachers)
    again = gradients(weightformer, student, teachers, recompute=True)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient)


def test_recomputing_keeps_less_for_backward(
    teachers: list[State], generator_of: Callable[..., WeightFormer]
):
    weightformer = generator_of(NAME, teachers).train()

    def kept(recompute: bool) -> int:
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            weightformer(teachers, recompute=recompute)
        return numbers

    assert kept(True) < kept(False) / 20


@each_form
def test_a_training_step_in_half_precision(
    network_of: Callable[..., nn.Module],
    teachers: list[State],
    generator_of: Callable[..., WeightFormer],
    form: dict[str, Any],
):
    student = network_of(NAME)
    weightformer = generator_of(NAME, teachers, **form).train()
    exact = gradients(weightformer, student, teachers)
    with torch.autocast("cpu", torch.bfloat16):
        written, _ = weightformer(teachers)
        half = gradients(weightformer, student, teachers, recompute=True)
    assert all(tensor.dtype == torch.float32 for tensor in written.values())
    assert half.keys() == exact.keys()
    assert half["loss"] == pytest.approx(float(exact["loss"]), rel=0.05)
    for name in ("cross", "position.weight", "blocks.0.qkv.weight"):
        cosine = F.cosine_similarity(half[name].flatten(), exact[name].flatten(), dim=0)
        assert cosine > 0.95, name


def test_in_half_precision_step_0_is_the_reference_exactly(
    teachers: list[State], generator_of: Callable[..., WeightFormer]
):
    asleep = generator_of(NAME, teachers, asleep=True, reference="mean")
    with torch.autocast("cpu", torch.bfloat16):
        written, _ = asleep(teachers)
    for name, tensor in written.items():
        mean = torch.stack([state[name] for state in teachers]).mean(0)
        assert torch.equal(tensor, mean)


def test_a_teacher_that_comes_later_costs_one_pass(
    teachers_of: Callable[..., list[State]], predictor_of: Callable[..., Predictor]
):
    teachers = teachers_of(NAME, 4)
    predictor = predictor_of(readout="pooled", reference="mean")
    before = hash_state(predictor.network.state_dict())
    three = predictor.predict(teachers[:3])
    four = predictor.predict(teachers)
    assert hash_state(predictor.network.state_dict()) == before  # nothing was trained
    assert hash_state(three) == hash_state(predictor.predict(teachers[:3]))
    assert not torch.equal(three["conv2.weight"], four["conv2.weight"])
