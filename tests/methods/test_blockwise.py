import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.data import ImageData
from metaensemble.methods import Batch, Blockwise, Stage, Task
from metaensemble.methods.blockwise import BlockLoss, GatedLearner
from metaensemble.methods.features import Features, Layout
from metaensemble.metrics import macs, parameters
from metaensemble.models import init_model
from metaensemble.models.taps import Tap
from metaensemble.teachers import Ensemble, Member, load_member, save_member

SHAPE = (1, 8, 8)


class Bench:
    """Two teachers, a student started from the first, a batch of twelve images."""

    def __init__(
        self,
        folder: Path,
        make_member: Callable[..., Member],
        data: ImageData,
        architecture: str,
    ) -> None:
        members = [
            make_member(folder / f"{seed}.safetensors", seed, architecture)
            for seed in (0, 1)
        ]
        self.ensemble = Ensemble(tuple(members))
        self.data = data
        self.student = members[0].network()
        pixels = data.train.batch(torch.arange(12))
        labels = torch.arange(12) % 10
        inputs = members[0].info.normalization(pixels)
        self.batch = Batch(0, inputs, labels, pixels=pixels, indices=torch.arange(12))
        self.task = Task(SHAPE, labels, architecture)

    def stages(self, method: Blockwise, steps: int = 3) -> list[Stage]:
        """Train a few steps in each stage."""
        done: list[Stage] = []
        for stage in method.stages(self.student, self.ensemble, self.task):
            train(stage.learner, self.batch, steps)
            done.append(stage)
        return done


def train(learner: nn.Module, batch: Batch, steps: int, rate: float = 0.05) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=rate)
    learner.train()
    for _ in range(steps):
        loss = torch.stack(list(learner(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learner.eval()


@pytest.fixture
def bench(tmp_path, make_member, digits) -> Callable[[str], Bench]:
    return lambda name: Bench(tmp_path, make_member, digits, name)


def gated_stage(bench: Bench, **fields: object) -> GatedLearner:
    method = Blockwise.model_validate({"max_macs": 1, "least": 1e-9} | fields)
    full = macs(bench.student, SHAPE)
    method = method.model_copy(update={"max_macs": full // 2})
    stage = next(method.stages(bench.student, bench.ensemble, bench.task))
    assert isinstance(stage.learner, GatedLearner)
    return stage.learner


@pytest.mark.parametrize(
    "architecture", ["mlp,width=8", "convnet,width=4", "mobilenet_v2,width=0.125"]
)
def test_the_student_keeps_to_the_budget_and_is_a_plain_member(
    bench, architecture, tmp_path
):
    here = bench(architecture)
    full = macs(here.student, SHAPE)
    before = [member.state() for member in here.ensemble.members]
    first, second = here.stages(Blockwise(max_macs=0.4 * full, epochs=10))
    assert (first.name, second.name) == ("blockwise-sparsify", "blockwise")
    assert first.settings.epochs + second.settings.epochs == 10
    assert first.architecture is None
    network = second.learner.export().eval()
    count = macs(network, SHAPE)
    assert 0.2 * full < count <= 0.4 * full
    note = second.notes[0]
    assert f"budget {int(0.4 * full):,} MACs: kept {count:,} of {full:,} (" in note
    assert f"; {parameters(network):,} parameters" in note

    # its text builds it, and a file of it gives the same logits
    assert second.architecture is not None
    assert second.architecture.startswith(f"{architecture},slim=")
    plain = init_model(second.architecture, 10, SHAPE, 0).state_dict()
    state = network.state_dict()
    assert {k: v.shape for k, v in plain.items()} == {
        k: v.shape for k, v in state.items()
    }
    info = here.ensemble.info.model_copy(update={"architecture": second.architecture})
    save_member(tmp_path / "student.safetensors", state, info)
    member = load_member(tmp_path / "student.safetensors", data=here.data)
    with torch.no_grad():
        expected = network(here.batch.inputs)
        assert torch.equal(member.network()(here.batch.inputs), expected)

    # the teachers did not move
    learner = first.learner
    assert isinstance(learner, GatedLearner)
    for teacher, member, state in zip(
        learner.teachers, here.ensemble.members, before, strict=True
    ):
        now = teacher.network.state_dict()
        assert all(torch.equal(now[key], value) for key, value in state.items())
        assert all(p.grad is None for p in teacher.network.parameters())
        again = member.state()
        assert all(torch.equal(again[key], value) for key, value in state.items())


def test_a_budget_of_parameters_and_both_together(bench):
    here = bench("convnet,width=4")
    full = parameters(here.student)
    *_, last = here.stages(Blockwise(max_parameters=full // 2), steps=1)
    assert parameters(last.learner.export()) <= full // 2
    budget = f"budget {full // 2:,} parameters: kept"
    assert last.notes[0].startswith(budget)
    assert last.notes[0].endswith(" MACs")
    here = bench("convnet,width=4")
    most = macs(here.student, SHAPE) // 2
    *_, last = here.stages(Blockwise(max_parameters=full // 3, max_macs=most), steps=1)
    assert parameters(last.learner.export()) <= full // 3
    assert macs(last.learner.export(), SHAPE) <= most
    assert "MACs: kept" in last.notes[0]
    assert f"budget {full // 3:,} parameters: kept" in last.notes[0]


def test_without_a_budget_half_of_the_macs_go(bench):
    here = bench("convnet,width=4")
    full = macs(here.student, SHAPE)
    *_, last = here.stages(Blockwise(), steps=1)
    assert last.notes[0] == f"no budget was given: it is {full // 2:,} MACs"
    assert 0.4 * full < macs(last.learner.export(), SHAPE) <= full // 2


def test_a_generous_budget_takes_nothing_out_and_says_so(bench):
    here = bench("convnet,width=4")
    full = macs(here.student, SHAPE)
    (only,) = here.stages(Blockwise(max_macs=full, epochs=10), steps=1)
    assert only.settings.epochs == 10
    assert only.architecture is None
    assert macs(only.learner.export(), SHAPE) == full
    (note,) = only.notes
    assert note.endswith("(100%); 2,294 parameters; nothing was taken out")


@pytest.mark.parametrize(
    ("field", "what"), [("max_macs", "macs"), ("max_parameters",) * 2]
)
def test_a_budget_below_the_smallest_student_is_refused(bench, field, what):
    here = bench("mlp,width=8")  # the smallest: 64 > 1 > 1 > 10
    what = field.replace("_", "-")
    least = {"max-macs": 64 + 1 + 10, "max-parameters": 65 + 2 + 20}[what]
    method = Blockwise.model_validate({field: least - 1})
    message = rf"--{what} must be at least {least}, the smallest .* is {least - 1}; rai"
    with pytest.raises(InputError, match=message):
        next(method.stages(here.student, here.ensemble, here.task))
    *_, last = here.stages(Blockwise.model_validate({field: least}), steps=1)
    assert last.architecture == ("mlp,width=8,slim=hidden.0:64>1+.2:1>1+fc:1>10")


def test_a_slim_student_gets_slimmer(bench):
    here = bench("mlp,width=8,slim=hidden.2:8>4+fc:4>10")
    *_, last = here.stages(Blockwise(max_macs=64 * 2 + 8 + 40), steps=1)
    assert last.architecture is not None
    assert last.architecture.startswith(
        "mlp,width=8,slim=hidden.2:2>4+fc:4>10+hidden.0:64>2"
    )
    network = init_model(last.architecture, 10, SHAPE, 0)
    assert macs(network, SHAPE) == macs(last.learner.export(), SHAPE)


def test_groups_that_stay_whole_are_named(bench):
    here = bench("resnet20,width=0.25")
    *_, last = here.stages(Blockwise(), steps=1)
    assert last.notes[-1] == (
        "these keep all their channels, for they cannot be narrowed alone: "
        "layer2.0.conv2, layer3.0.conv2"
    )


def test_without_weight_on_the_cost_all_channels_stay_alive(bench):
    gates: list[Tensor] = []
    for budget in (1e4, 1.0):  # the gates know nothing of the budget
        here = bench("convnet,width=4")
        learner = gated_stage(here, cost_weight=0)
        learner.budgets = [(what, model, budget) for what, model, _ in learner.budgets]
        train(learner, here.batch, 20)
        assert learner(here.batch)["cost"].item() == 0
        gates.append(learner.gates.detach())
    assert float(gates[0].min()) > 0.5
    assert torch.equal(*gates)


def test_a_larger_weight_on_the_cost_leaves_no_more_channels_alive(bench):
    # convex: sum_c a_c (1 - g_c)^2 / 2 + weight * cost of one hidden layer
    learner = gated_stage(bench("mlp,width=16,depth=1"))
    learner.budgets = [(what, model, 0.0) for what, model, _ in learner.budgets]
    pull = torch.linspace(0.001, 0.1, 16)
    alive = []
    for weight in (0, 0.1, 0.3, 0.6, 1, 2):
        gates = learner.gates
        nn.init.ones_(gates)
        for _ in range(400):
            loss = (pull * (1 - gates).square()).sum() / 2 + weight * learner.excess()
            (gradient,) = torch.autograd.grad(loss, gates)
            with torch.no_grad():
                gates.sub_(2 * gradient).clamp_(0, 1)
        alive.append(int((gates > 1e-3).sum()))
    assert alive[0] == 16
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] == 0
    assert len(set(alive)) >= 4


def test_importance_is_the_squared_effect_of_each_gate(bench):
    here = bench("convnet,width=4")
    learner = gated_stage(here, cost_weight=3)
    with torch.no_grad():
        learner.gates.uniform_(0.8, 0.95)
    gates = learner.gates.detach().clone()
    learner.train()
    losses = learner(here.batch)
    task = losses["distillation"] + losses["blockwise"]
    (gradient,) = torch.autograd.grad(task, learner.gates, retain_graph=True)
    learner.importance.zero_()  # the line above has counted, too
    torch.stack(list(losses.values())).sum().backward()
    expected = 0.05 * (gates * gradient).square()
    torch.testing.assert_close(learner.importance, expected)
    assert learner.gates.grad is not None
    assert not torch.allclose(learner.gates.grad, gradient)  # the cost pulls as well


def test_the_excess_cost_is_that_of_the_sums_of_the_gates(bench):
    learner = gated_stage(bench("mlp,width=8"))  # 64 > 8 > 8 > 10
    full = 64 * 8 + 8 * 8 + 8 * 10
    assert learner.excess().item() == pytest.approx(0.5)
    with torch.no_grad():
        learner.gates[:8] = 0.75
        learner.gates[8:] = 0.5
    relaxed = 64 * 6 + 6 * 4 + 4 * 10
    assert learner.excess().item() == pytest.approx(relaxed / full - 0.5)
    with torch.no_grad():
        learner.gates[:8] = 0.25
    assert learner.excess().item() == 0


def test_gates_stay_between_zero_and_one_and_are_folded_into_the_export(bench):
    here = bench("convnet,width=4")
    learner = gated_stage(here)
    with torch.no_grad():
        learner.gates.uniform_(-1, 2)
    kept = learner.gates.detach().clamp(0, 1)
    exported = learner.export()
    learner.train()
    learner(here.batch)
    assert torch.equal(learner.gates.detach(), kept)
    assert set(exported.state_dict()) == set(here.student.state_dict())
    weight = here.student.get_parameter("fc.weight")
    factor = kept[-16:]
    torch.testing.assert_close(exported.get_parameter("fc.weight"), weight * factor)


def test_what_is_taken_out_depends_on_the_learners_state_alone(bench):
    method = Blockwise(epochs=10)
    texts = []
    state: dict[str, Tensor] = {}
    for _ in range(2):
        here = bench("convnet,width=4")
        stages = method.stages(here.student, here.ensemble, here.task)
        learner = next(stages).learner
        if state:  # as if resumed at the end of the first stage
            learner.load_state_dict(state)
        else:
            train(learner, here.batch, 3)
            state = copy.deepcopy(learner.state_dict())
            assert {"gates", "importance"} <= set(state)
        second = next(stages)
        texts.append((second.architecture, second.learner.export().state_dict()))
    assert texts[0][0] == texts[1][0]
    assert all(torch.equal(v, texts[1][1][k]) for k, v in texts[0][1].items())


def test_the_loss_of_a_block_is_relative_to_the_teachers_power():
    tap = Tap("a", 1, "output", 2, 4, 4)
    wide = Tap("b", 1, "output", 3, 2, 2)
    vector = Tap("c", 1, "input", 2, 1, 1)
    loss = BlockLoss(Layout((tap,), (wide,), vector, vector, torch.zeros(4)))
    random = torch.Generator().manual_seed(0)
    own = torch.randn(5, 2, 4, 4, generator=random, requires_grad=True)
    weight = torch.randn(3, 2, generator=random)
    its = torch.einsum("oi,bihw->bohw", weight, F.avg_pool2d(own.detach(), 2)) + 0.5
    nothing = torch.zeros(5, 2)
    student = Features((own,), nothing, nothing)
    teacher = Features((its,), nothing, nothing)
    batch = Batch(0, torch.zeros(5, 1, 1, 1), torch.zeros(5, dtype=torch.int64))
    value = loss(student, teacher, batch)
    assert value.item() == pytest.approx(1)  # a map that starts at zero explains none
    (gradient,) = torch.autograd.grad(value, own)
    assert float(gradient.abs().max()) == 0  # and pulls the student nowhere
    with torch.no_grad():
        adapter = loss.adapters[0]
        assert isinstance(adapter, nn.Conv2d)
        adapter.weight.copy_(weight[:, :, None, None])
        assert adapter.bias is not None
        adapter.bias.fill_(0.5)
    assert loss(student, teacher, batch).item() == pytest.approx(0, abs=1e-10)


def test_budgets_may_be_written_with_an_exponent():
    method = Blockwise.model_validate({"max_macs": "2e6", "max_parameters": 1e5})
    assert (method.max_macs, method.max_parameters) == (2_000_000, 100_000)
    for wrong in (0, -1, "few"):
        with pytest.raises(ValueError, match="max_macs"):
            Blockwise.model_validate({"max_macs": wrong})
