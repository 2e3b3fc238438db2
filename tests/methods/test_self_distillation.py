from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.engine import Fitted, RunLog, fit
from metaensemble.methods import Batch, SelfDistillation, Stage, Task
from metaensemble.methods.self_distillation import GenerationLearner, MemberLearner
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.workflows import online
from metaensemble.workflows.fuse import Choices, fuse_students
from metaensemble.workflows.online import grow
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import distillation_images

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
CONVNET = "convnet,width=4"
LOG = RunLog(quiet=True)


def images(labels: Tensor = LABELS, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(0, torch.randn(len(labels), *SHAPE, generator=random), labels)


def train(learner: nn.Module, batch: Batch, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner.train()
    for _ in range(steps):
        loss = torch.stack(list(learner(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def generations(**fields) -> list[GenerationLearner]:
    """Train a few steps in every stage."""
    torch.manual_seed(0)
    task = Task(SHAPE, LABELS, CONVNET, num_classes=5)
    student = init_model(CONVNET, 5, SHAPE, 0)
    done = []
    for stage in SelfDistillation(**fields).stages(student, Ensemble(()), task):
        assert isinstance(stage.learner, GenerationLearner)
        assert stage.name == f"self_distillation-{len(done)}"
        train(stage.learner, images())
        done.append(stage.learner)
    return done


def test_the_first_generation_learns_from_labels_alone():
    first, *_ = generations(label_weight=0.5)
    losses = first(images())
    assert losses.keys() == {"label"}
    expected = F.cross_entropy(first.network(images().inputs), LABELS)
    torch.testing.assert_close(losses["label"], expected)


def test_the_next_learns_from_it_and_from_labels():
    first, second = generations(label_weight=0.25, temperature=3.0)
    teacher, student = first.network.eval(), second.network
    losses = second(images())
    with torch.no_grad():
        p = (teacher(images().inputs) / 3).softmax(-1)
        said = student(images().inputs)
        q = (said / 3).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(losses["distillation"], 0.75 * 9 * kl)
    label = F.cross_entropy(said, LABELS)
    torch.testing.assert_close(losses["label"], 0.25 * label)


def test_every_generation_starts_from_weights_of_its_own():
    """From the seed of its teacher a student has nothing to gain (Allen-Zhu, Li)."""
    torch.manual_seed(0)
    task = Task(SHAPE, LABELS, CONVNET, num_classes=5)
    student = init_model(CONVNET, 5, SHAPE, 0)
    method = SelfDistillation(generations=2)
    starts = [
        stage.learner.get_parameter("network.conv2.weight").detach().clone()
        for stage in method.stages(student, Ensemble(()), task)
    ]
    assert len(starts) == 3
    given = init_model(CONVNET, 5, SHAPE, 0).get_parameter("conv2.weight")
    assert torch.equal(starts[0], given)
    for i, one in enumerate(starts):
        assert not any(torch.equal(one, other) for other in starts[i + 1 :])


def test_with_labels_alone_a_generation_is_trained_plainly():
    _, second = generations(label_weight=1.0)
    losses = second(images())
    assert losses.keys() == {"label"}
    expected = F.cross_entropy(second.network(images().inputs), LABELS)
    torch.testing.assert_close(losses["label"], expected)


def test_unlabelled_images_are_learnt_from_the_teacher_only():
    _, second = generations(label_weight=0.5)
    losses = second(images(torch.full((4,), -1)))
    assert losses["label"] == 0
    assert losses["distillation"] > 0


def test_the_generation_that_teaches_is_never_touched():
    first, second = generations()
    (teacher,) = second.earlier
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    train(second, images(seed=1), steps=3)
    assert all(
        torch.equal(before[k], v) for k, v in teacher.network.state_dict().items()
    )
    trained = first.network.state_dict()
    assert all(torch.equal(trained[k], v) for k, v in before.items())
    assert not any(module.training for module in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    # it is no part of what is trained or saved
    own = {id(p) for p in second.parameters()}
    assert not own & {id(p) for p in teacher.network.parameters()}
    assert all(name.startswith("network.") for name in second.state_dict())


def test_a_later_training_of_the_first_does_not_move_the_teacher():
    first, second = generations()
    before = second(images())["distillation"]
    train(first, images(seed=2))
    torch.testing.assert_close(second(images())["distillation"], before)


def test_the_last_generation_is_shipped_and_all_are_kept():
    first, second, third = generations(generations=2)
    third.eval()
    grown = third.networks()
    names = [network.name for network in grown]
    assert names == ["generation-2", "generation-1", "generation-0"]
    for network, learner in zip(grown, (third, second, first), strict=True):
        plain = init_model(CONVNET, 5, SHAPE, 9)
        plain.load_state_dict(network.network.state_dict())
        expected = learner.network.eval()(images().inputs)
        torch.testing.assert_close(plain.eval()(images().inputs), expected)
    exported = third.export()(images().inputs)
    torch.testing.assert_close(exported, third.predictions(images().inputs)[0])


@pytest.fixture
def members(tmp_path: Path, make_member) -> Ensemble:
    first = make_member(tmp_path / "0.safetensors", 0, "mlp,width=8")
    return Ensemble((first, make_member(tmp_path / "1.safetensors", 1, CONVNET)))


def learner_of(stage: Stage) -> GenerationLearner:
    assert isinstance(stage.learner, GenerationLearner)
    return stage.learner


def target_of(learner: GenerationLearner, batch: Batch) -> Tensor:
    assert learner.target is not None
    return learner.target(batch)


def of_members(members: Ensemble, digits, **fields) -> tuple[list[Stage], Batch]:
    torch.manual_seed(0)
    pixels = digits.train.batch(torch.arange(8))
    said = [m.network()(m.prepare(pixels)) for m in members.members]
    labels = digits.train.labels[:8]
    inputs = digits.normalization(pixels)
    batch = Batch(0, inputs, labels, teacher_logits=torch.stack(said).detach())
    task = Task(SHAPE, digits.train.labels, "mlp,width=4", num_classes=10)
    student = init_model("mlp,width=4", 10, SHAPE, 0)
    done = []
    for stage in SelfDistillation(**fields).stages(student, members, task):
        train(stage.learner, batch)
        done.append(stage)
    return done, batch


def test_each_member_is_distilled_into_a_fresh_network_of_its_kind(members, digits):
    stages, batch = of_members(members, digits, generations=2)
    assert [stage.name for stage in stages] == [
        "self_distillation-member-0-1",
        "self_distillation-member-0-2",
        "self_distillation-member-1-1",
        "self_distillation-member-1-2",
        "self_distillation",
    ]
    *before, last = map(learner_of, stages)
    assert all(isinstance(learner, MemberLearner) for learner in before)
    assert all(learner.preparation for learner in before)
    assert not last.preparation
    assert "self-distilled 2 times before" in stages[-1].notes[0]
    kinds = [type(learner.network).__name__ for learner in before]
    assert kinds == ["MLP", "MLP", "ConvNet", "ConvNet"]

    # the first learns from the member, the second from the first
    assert batch.teacher_logits is not None
    for place, learner in ((0, before[0]), (1, before[2])):
        target = (batch.teacher_logits[place] / 2).log_softmax(-1)
        torch.testing.assert_close(target_of(learner, batch), target)
    for learner, teacher in ((before[1], before[0]), (before[3], before[2])):
        with torch.no_grad():
            target = (teacher.network.eval()(batch.inputs) / 2).log_softmax(-1)
        torch.testing.assert_close(target_of(learner, batch), target)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_student_learns_from_the_ensemble_of_the_new_networks(
    members, digits, together, average
):
    weighed = Ensemble(members.members, average, weights=(0.25, 0.75))
    stages, batch = of_members(weighed, digits, with_members=together)
    *new, last = map(learner_of, stages)
    with torch.no_grad():
        said = torch.stack([one.network.eval()(batch.inputs) for one in new]) / 2
    shares = torch.tensor([0.25, 0.75])[:, None, None]
    if together:
        assert batch.teacher_logits is not None
        said = torch.cat([said, batch.teacher_logits / 2])
        shares = torch.cat([shares, shares]) / 2
    expected = (
        (shares * said.softmax(-1)).sum(0).log()
        if average == "probabilities"
        else (shares * said).sum(0).log_softmax(-1)
    )
    torch.testing.assert_close(target_of(last, batch), expected)


def test_members_that_are_not_heard_are_not_heard_of_their_successors(members, digits):
    silent = Ensemble(members.members, silent=(1,))
    stages, batch = of_members(silent, digits)
    with torch.no_grad():
        first = learner_of(stages[0]).network.eval()
        expected = (first(batch.inputs) / 2).log_softmax(-1)
    torch.testing.assert_close(target_of(learner_of(stages[-1]), batch), expected)


def test_fuse_makes_one_student_of_members(members, digits, tmp_path):
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    method = SelfDistillation(epochs=1, batch_size=27)

    def made() -> nn.Module:
        session = open_session(options, digits, None, LOG)
        (student,) = fuse_students(session, members, method, "mlp,width=4")
        assert student.info.architecture == "mlp,width=4"
        assert student.train_images == 3 * 33 * 27  # an epoch of 894 in each stage
        assert set(student.history[-1]) >= {"loss_distillation", "accuracy"}
        return student.network

    state, again = made().state_dict(), made().state_dict()
    assert set(state) == set(init_model("mlp,width=4", 10, SHAPE, 0).state_dict())
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_an_interrupted_run_ends_in_the_same_bits(digits, tmp_path, monkeypatch):
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    method = SelfDistillation(epochs=2, batch_size=300)
    assert len(distillation_images(open_session(options, digits, None, LOG))) == 894

    def hashes(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        session = open_session(options, digits, folder, LOG)
        made = grow(session, method, Choices(CONVNET), folder / "networks")
        return [member.sha256 for member in made.ensemble.members]

    def interrupted(*arguments, what: str, **keywords) -> Fitted:
        stop = 3 if what.endswith("-1") else None
        done = fit(*arguments, what=what, stop_after=stop, **keywords)
        if stop:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(online, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hashes(tmp_path / "broken")
    assert list((tmp_path / "broken").glob(".self_distillation-1.*.ckpt"))
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")
