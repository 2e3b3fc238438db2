"""What went wrong in the public code of the paper, each as a test that it cannot here.

The traps are those found by reading github.com/feizc/Meta-Ensemble (2022-10-09).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.core.states import State, hash_state
from metaensemble.data import ImageData
from metaensemble.methods.contract import Batch
from metaensemble.methods.weightformer import WeightFormerLearner, WeightFormerMethod
from metaensemble.models import build, init_model
from metaensemble.teachers import Ensemble, Member, load_ensemble
from metaensemble.weightformer import (
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
    load_predictor,
    read_tokens,
    save_predictor,
    write_tokens,
)

NAME = "convnet,width=2"
SMALL: dict[str, Any] = {"width": 8, "heads": 2, "depth": 1}


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Five members of one architecture."""
    for seed in range(5):
        make_member(tmp_path / f"{seed}.safetensors", seed, NAME)
    return load_ensemble([tmp_path])


@pytest.fixture
def learner_of() -> Callable[..., WeightFormerLearner]:
    """Build a learner for members, in training mode, its generator asleep."""

    def make(members: Ensemble, **fields: Any) -> WeightFormerLearner:
        with seeded("learner"):
            student = build(NAME, len(members.info.classes), members.info.input_shape)
            method = WeightFormerMethod.model_validate({**SMALL, **fields})
            return method.learner(student, members).train()

    return make


@pytest.fixture
def batch_of(digits: ImageData) -> Callable[..., Batch]:
    """The images that learn, with the logits of all members."""

    def make(members: Ensemble, step: int = 0) -> Batch:
        indices = torch.arange(len(digits.train))
        inputs = digits.normalization(digits.train.batch(indices))
        with torch.no_grad():
            logits = [member.network()(inputs) for member in members.members]
        return Batch(step, inputs, digits.train.labels, torch.stack(logits))

    return make


def test_distinct_teachers_are_enforced(
    tmp_path: Path, make_member: Callable[..., Member]
):
    # Both default teachers of every public script are the file ckpt/vgg11_bn.pth.
    first = make_member(tmp_path / "a.safetensors", 0)
    with pytest.raises(InputError, match="is named twice"):
        load_ensemble([first.path, first.path])
    copy = tmp_path / "b.safetensors"
    copy.write_bytes(first.path.read_bytes())
    with pytest.raises(InputError, match="hold the same bytes; leave one out"):
        load_ensemble([first.path, copy])


@pytest.mark.parametrize("head", ["direct", "residual", "mixture"])
@pytest.mark.parametrize("name", [NAME, "resnet20", "separable", "lone"])
def test_all_layers_are_predicted(
    teachers_of: Callable[..., list[State]],
    generator_of: Callable[..., WeightFormer],
    network_of: Callable[..., nn.Module],
    name: str,
    head: str,
):
    # The public code predicts four convolutions and copies the rest of teacher 0.
    teachers = teachers_of(name)
    written, _ = generator_of(name, teachers, head=head)(teachers)
    assert written.keys() == dict(network_of(name).named_parameters()).keys()
    for key, tensor in written.items():
        for state in teachers:
            assert (tensor != state[key]).all(), key


@pytest.mark.parametrize("head", ["direct", "residual", "mixture"])
def test_the_end_to_end_gradient_is_not_cut(
    zoo: Ensemble,
    learner_of: Callable[..., WeightFormerLearner],
    batch_of: Callable[..., Batch],
    head: str,
):
    # Joint tuning of the public code loads the weights with load_state_dict: no
    # gradient passes, and the generator's optimizer steps on nothing.
    learner, batch = learner_of(zoo, head=head, shift_weight=0), batch_of(zoo)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    before = hash_state(learner.generator.state_dict())
    losses = []
    for _ in range(4):
        loss = learner(batch)["divergence"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert hash_state(learner.generator.state_dict()) != before
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_number_of_teachers_is_free(
    zoo: Ensemble,
    learner_of: Callable[..., WeightFormerLearner],
    batch_of: Callable[..., Batch],
    count: int,
):
    # The public code takes the first half of the sequence: two teachers, hard-wired.
    members = zoo.subset(range(count))
    learner = learner_of(members)
    loss = sum(learner(batch_of(members)).values())
    assert isinstance(loss, Tensor)
    loss.backward()
    assert torch.isfinite(loss)
    assert learner.export()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_predictor_is_saved(
    tmp_path: Path, zoo: Ensemble, learner_of: Callable[..., WeightFormerLearner]
):
    # In the flagship script torch.save is commented out.
    learner = learner_of(zoo, head="direct")
    path = tmp_path / "out" / "predictor.safetensors"
    save_predictor(path, learner.predictor())
    predicted = load_predictor(path).predict(zoo.states())
    assert hash_state(predicted) == hash_state(learner.export().state_dict())


def test_a_token_of_teacher_2_influences_the_output_at_its_position(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    # With windows of a few tokens, token j of teacher 1 never sees that of teacher 2,
    # which is n_out tokens away.
    teachers = teachers_of("convnet,width=16")
    weightformer = generator_of("convnet,width=16", teachers, depth=1)
    key, position = "conv4.weight", 50  # of 64 channels
    before, _ = weightformer(teachers)
    changed = {k: v.clone() for k, v in teachers[1].items()}
    changed[key][position] += 1.0
    after, _ = weightformer([teachers[0], changed])
    assert (before[key][position] != after[key][position]).any()
    assert torch.equal(before["conv3.weight"], after["conv3.weight"])


def test_every_token_carries_the_id_of_its_teacher(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    # The public code gives the first token of teacher 2 the id of teacher 1.
    teachers = teachers_of("mlp,width=4", 3)
    weightformer = generator_of("mlp,width=4", teachers, depth=1)
    sequences: list[Tensor] = []
    weightformer.blocks[0].register_forward_pre_hook(
        lambda _, args: sequences.append(args[0].detach())
    )
    weightformer(teachers)
    layers = len(weightformer.spec.layers)
    with torch.no_grad():
        weightformer.model_id.weight[2] += 1.0
    weightformer(teachers)
    first, again = sequences[0], sequences[layers]
    assert first.shape == (1 + 3 * 4, 8)  # [cross], then 4 tokens of each teacher
    moved = (again - first).mean(1)
    assert moved.round().tolist() == [0, *[0] * 4, *[1] * 4, *[0] * 4]


def test_positions_restart_inside_each_teacher(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    # The paper's figure 2; the public code counts over the whole sequence.
    (teacher,) = teachers_of("mlp,width=4", 1)
    weightformer = generator_of("mlp,width=4", [teacher], depth=1)
    with torch.no_grad():
        weightformer.model_id.weight.zero_()
    sequences: list[Tensor] = []
    weightformer.blocks[0].register_forward_pre_hook(
        lambda _, args: sequences.append(args[0].detach())
    )
    weightformer([teacher, teacher])
    first, second = sequences[0][1:].chunk(2)
    torch.testing.assert_close(first, second)


def test_the_table_of_positions_holds_the_longest_layer():
    # 2,048 positions of the public code are fewer than 2 x 2,048 tokens of ResNet-50.
    with torch.device("meta"):
        network = build("resnet50", 10, (3, 32, 32))
    network = network.to_empty(device="cpu")
    spec = derive_token_spec(network, (3, 32, 32))
    assert spec.most_rows == 2048
    with torch.device("meta"):
        weightformer = WeightFormer(WeightFormerConfig(width=8, heads=2), spec)
    assert weightformer.position.num_embeddings == 1 + 2048  # [cross] before them


def test_the_loss_is_a_divergence(
    zoo: Ensemble,
    learner_of: Callable[..., WeightFormerLearner],
    batch_of: Callable[..., Batch],
):
    # The public baseline gives raw logits to KLDivLoss. Here the student that is the
    # only teacher has no loss, up to the batch norms' use of the batch's statistics.
    one = zoo.subset([0])
    learner, batch = learner_of(one, head="residual", shift_weight=0), batch_of(one)
    inputs, network = batch.inputs, one.members[0].network().train()
    exact = Batch(0, inputs, batch.labels, network(inputs).detach()[None])
    assert learner(exact)["divergence"].item() == pytest.approx(0, abs=1e-5)
    assert learner(batch)["divergence"].item() > 1e-3


def test_running_statistics_are_marked_as_stale(
    zoo: Ensemble, learner_of: Callable[..., WeightFormerLearner]
):
    # The public code keeps those of teacher 0 under predicted weights.
    learner = learner_of(zoo)
    assert learner.stale_statistics
    mean = torch.stack([s["bn1.running_mean"] for s in zoo.states()]).mean(0)
    torch.testing.assert_close(learner.export().state_dict()["bn1.running_mean"], mean)


def test_training_a_step_leaves_the_statistics_of_the_student_alone(
    zoo: Ensemble, batch_of: Callable[..., Batch]
):
    student, batch = build(NAME, 10, (1, 8, 8)), batch_of(zoo)
    learner = WeightFormerMethod.model_validate(SMALL).learner(student, zoo).train()
    before = hash_state(student.state_dict())
    first = learner(batch)["divergence"].item()
    assert hash_state(student.state_dict()) == before
    assert learner(batch)["divergence"].item() == first


def test_draws_are_a_function_of_seed_and_step(zoo: Ensemble):
    student = build(NAME, 10, (1, 8, 8))
    method = WeightFormerMethod.model_validate(SMALL)

    def drawn(seed: int) -> list[list[int]]:
        learner = WeightFormerLearner(method, student, zoo, zoo, draw=(2, 4), seed=seed)
        return [learner.chosen(step) for step in range(40)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert {len(chosen) for chosen in drawn(0)} == {2, 3, 4}
    assert all(len(set(chosen)) == len(chosen) for chosen in drawn(0))
    assert {i for chosen in drawn(0) for i in chosen} == set(range(5))
    assert {chosen[0] for chosen in drawn(0)} == set(range(5))  # the order is random


def test_teachers_without_a_count_of_batches_are_exported(
    tmp_path: Path, zoo: Ensemble, digits: ImageData, learner_of: Callable[..., Any]
):
    # Checkpoints older than PyTorch 0.4.1 have no num_batches_tracked.
    folder = tmp_path / "old"
    folder.mkdir()
    for i, state in enumerate(zoo.states()[:2]):
        old = {k: v for k, v in state.items() if not k.endswith("_tracked")}
        torch.save(old, folder / f"{i}.pt")
    members = load_ensemble([folder], architecture=NAME, data=digits)
    assert learner_of(members).export()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_gain_zero_of_a_pure_residual_gives_the_reference(
    teachers_of: Callable[..., list[State]], generator_of: Callable[..., WeightFormer]
):
    teachers = teachers_of(NAME)
    written, _ = generator_of(NAME, teachers, gain=0)(teachers)
    assert all(torch.equal(written[key], teachers[0][key]) for key in written)


def test_the_reference_is_chosen_by_kinship(
    tmp_path: Path,
    zoo: Ensemble,
    make_member: Callable[..., Member],
    learner_of: Callable[..., WeightFormerLearner],
):
    assert learner_of(zoo).generator.config.reference == "first"
    family = [
        make_member(tmp_path / f"kin-{seed}.safetensors", seed, NAME, zoo.members[0])
        for seed in range(2)
    ]
    kin = load_ensemble([member.path for member in family])
    assert learner_of(kin).generator.config.reference == "mean"
    assert learner_of(kin).predictor().info.config.reference == "mean"
    chosen = learner_of(kin, reference="first")
    assert chosen.generator.config.reference == "first"


def test_labels_enter_only_if_asked(
    zoo: Ensemble,
    learner_of: Callable[..., WeightFormerLearner],
    batch_of: Callable[..., Batch],
):
    batch = batch_of(zoo)
    scrambled = Batch(0, batch.inputs, batch.labels.flip(0), batch.teacher_logits)
    without, with_labels = learner_of(zoo), learner_of(zoo, label_weight=0.5)
    assert without(batch).keys() == {"divergence", "shift"}
    assert without(batch)["divergence"] == without(scrambled)["divergence"]
    assert with_labels(batch)["label"] != with_labels(scrambled)["label"]


@pytest.mark.parametrize("name", ["convnet,width=4", "resnet20,width=0.5"])
def test_gradients_do_not_depend_on_the_images_memory_layout(name: str):
    # torch 2.13 on the CPU: channels-last images and weights that are strided views
    # gave wrong gradients, so that generators diverged.
    shape = (3, 16, 16)
    network = init_model(name, 10, shape, 0).train()
    spec = derive_token_spec(network, shape)
    state = {key: value.detach() for key, value in network.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    images = torch.randn(32, *shape, generator=random)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        tokens = [read_tokens(layer, state).requires_grad_() for layer in spec.layers]
        buffers = {key: value.clone() for key, value in network.named_buffers()}
        inputs = torch.empty_like(images, memory_format=layout).copy_(images)
        weights = {**write_tokens(spec, tokens), **buffers}
        logits = functional_call(network, weights, (inputs,))
        logits.log_softmax(-1)[:, 0].mean().backward()
        found.append([token.grad for token in tokens])
    for plain, last in zip(*found, strict=True):
        scale = float(plain.norm())
        torch.testing.assert_close(last, plain, rtol=0, atol=1e-3 * scale)
