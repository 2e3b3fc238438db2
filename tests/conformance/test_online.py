"""Every method that begins without members, on every family of networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of
from metaensemble.data import ImageData, TensorSplit
from metaensemble.engine import Fitted, RunLog, evaluate, fit
from metaensemble.methods import Learner, OnlineLearner, OnlineMethod
from metaensemble.models import init_model
from metaensemble.report import read_report, write_report
from metaensemble.teachers import load_member
from metaensemble.workflows import online
from metaensemble.workflows.fuse import Choices, fuse_students
from metaensemble.workflows.online import Growth, grow
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import METHODS
from metaensemble.workflows.reporting import measure_student, save_student
from tests.conformance.conftest import FAMILIES, coloured, small, untrained

ONLINE = [name for name, kind in METHODS.items() if issubclass(kind, OnlineMethod)]

CASES = [
    pytest.param(
        name,
        family,
        id=f"{name}-{family}",
        # its 9 million weights take seconds
        marks=pytest.mark.slow if family == "vgg11_bn" else (),
    )
    for name in ONLINE
    for family in FAMILIES
]


def online_method(name: str) -> OnlineMethod:
    method = small(name)
    assert isinstance(method, OnlineMethod)
    return method


def session_of(data: ImageData, folder: Path) -> Session:
    options = RunOptions(device="cpu", cache=folder / "cache", quiet=True)
    return open_session(options, data, None, RunLog(quiet=True))


def grown(
    name: str,
    data: ImageData,
    folder: Path,
    architecture: str = "convnet,width=4",
    **fields: Any,
) -> Growth:
    method = online_method(name).model_copy(update=fields)
    session = session_of(data, folder)
    return grow(session, method, Choices(architecture), folder / "networks")


@pytest.fixture
def learners(monkeypatch) -> list[Learner]:
    """Every learner that is fitted."""
    seen: list[Learner] = []

    def noted(learner: Learner, *arguments: Any, **keywords: Any) -> Fitted:
        seen.append(learner)
        return fit(learner, *arguments, **keywords)

    monkeypatch.setattr(online, "fit", noted)
    return seen


def test_the_registry_tells_online_methods_by_their_members():
    assert "one" in ONLINE
    none = [name for name, kind in METHODS.items() if kind.fewest_members == 0]
    assert none == ONLINE


@pytest.mark.parametrize(("name", "family"), CASES)
def test_every_network_is_a_plain_member(name, family, tmp_path, learners):
    architecture, size = FAMILIES[family]
    data = coloured(size)

    made = grown(name, data, tmp_path, architecture)

    # what was trained is what was written, loads strictly, and says the same
    learner = learners[-1].eval()
    assert isinstance(learner, OnlineLearner)
    networks = {network.name: network for network in learner.networks()}
    written = [*made.ensemble.members, *made.others]
    paths = {tmp_path / "networks" / f"{name}.safetensors" for name in networks}
    assert set((tmp_path / "networks").iterdir()) == paths
    assert {member.path for member in written} == paths
    assert len(made.ensemble) == sum(network.member for network in networks.values())
    assert len(made.ensemble) >= 2
    normalization = data.normalization
    for path in paths:
        member, network = load_member(path, data=data), networks[path.stem]
        text = member.info.architecture
        assert text == (network.architecture or architecture)
        assert text == architecture or text.startswith(f"{architecture},")
        plain = init_model(text, 3, data.input_shape, 0)
        assert list(network.network.state_dict()) == list(plain.state_dict())
        here = evaluate(network.network, normalization, data.test)
        there = evaluate(member.network(), normalization, data.test)
        assert torch.equal(here.log_probs, there.log_probs)
        for module in network.network.modules():  # nothing of the training hangs on
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    # the student is the first of them
    first = next(iter(networks.values()))
    shipped = evaluate(made.student.network, normalization, data.test)
    again = evaluate(first.network, normalization, data.test)
    assert torch.equal(shipped.log_probs, again.log_probs)
    assert first.member
    assert made.student.info.architecture == (first.architecture or architecture)

    # every number of the training was finite
    for row in made.student.history:
        assert all(torch.isfinite(torch.tensor(v)) for v in row.values()), row
    assert any(key.startswith("loss_") for key in made.student.history[-1])
    assert made.student.train_images > 0

    # its report is whole
    session, method = session_of(data, tmp_path), online_method(name)
    path = tmp_path / "student.safetensors"
    save_student(path, made.ensemble, made.student, method, made.found)
    report = measure_student(
        session,
        made.ensemble,
        made.student,
        command="a test",
        method=method,
        path=path,
        found=made.found,
    ).report
    write_report(tmp_path / "report.json", report)
    known = read_report(tmp_path / "report.json")
    assert [t.sha256 for t in known.teachers] == [
        m.sha256 for m in made.ensemble.members
    ]
    assert [t.sha256 for t in known.others] == [m.sha256 for m in made.others]
    assert known.student.sha256 == load_member(path, data=data).sha256
    assert known.teachers[0].test == known.student.test


@pytest.mark.parametrize("name", ONLINE)
def test_a_repeated_run_writes_the_same_bytes(name, tmp_path):
    data = coloured(8)
    found = []
    for turn in ("first", "second"):
        torch.manual_seed(len(turn))  # whatever was drawn before plays no part
        made = grown(name, data, tmp_path / turn)
        path = tmp_path / turn / "student.safetensors"
        save_student(path, made.ensemble, made.student, online_method(name))
        files = (tmp_path / turn).rglob("*.safetensors")
        found.append({path.name: sha256_of(path) for path in files})
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(found[0])


@pytest.mark.parametrize("name", ONLINE)
def test_members_are_refused_or_taken(name, tmp_path):
    data = coloured(8)
    ensemble = untrained(tmp_path, data, "convnet,width=4", 2)
    method, session = online_method(name), session_of(data, tmp_path)
    if method.takes_members:
        (student,) = fuse_students(session, ensemble, small(name))
        assert student.info.architecture == "convnet,width=4"
        return
    with pytest.raises(
        InputError, match=rf"{name} trains its networks itself and takes no .* got 2; "
    ):
        fuse_students(session, ensemble, small(name))


@pytest.mark.parametrize("name", ONLINE)
def test_batches_of_one_image_are_no_trouble(name, tmp_path):
    made = grown(name, coloured(8), tmp_path, batch_size=1)
    assert made.student.train_images >= 12
    for row in made.student.history:
        assert all(torch.isfinite(torch.tensor(v)) for v in row.values()), row


@pytest.mark.parametrize("name", ONLINE)
def test_images_without_labels_are_trained_on(name, tmp_path, learners):
    data = coloured(8)
    noise = TensorSplit(data.train.batch(torch.arange(12)), torch.full((12,), -1))
    made = grown(
        name, replace(data, unlabelled=noise), tmp_path, batch_size=len(data.train)
    )
    assert made.student.train_images == 24 * len(learners)
    for row in made.student.history:
        assert all(torch.isfinite(torch.tensor(v)) for v in row.values()), row


@pytest.mark.parametrize("name", ONLINE)
def test_a_learner_gives_the_logits_of_the_networks_it_trains(name, tmp_path, learners):
    data = coloured(8)
    grown(name, data, tmp_path)
    learner = learners[-1].eval().requires_grad_(False)
    assert isinstance(learner, OnlineLearner)
    inputs = data.normalization(data.test.batch(torch.arange(9)))
    said = learner.predictions(inputs)
    networks = [n.network.eval() for n in learner.networks() if n.member]
    logits = torch.stack([network(inputs) for network in networks])
    assert said.shape[1:] == logits.shape[1:]
    for row in said:  # those of an earlier generation are not trained any more
        assert min((row - other).abs().max() for other in logits) < 1e-5


@pytest.mark.parametrize("name", ONLINE)
def test_images_that_teachers_would_move_are_refused(name):
    with pytest.raises(ValueError, match="only if there are teachers, but --perturb"):
        METHODS[name](perturbation="ods")  # pyright: ignore
