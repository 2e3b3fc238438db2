"""Independent teachers, brought to one order of channels before they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.alignment import apply_permutations, random_permutations, spec_for
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import State, load_state, save_state
from metaensemble.methods import WeightFormerMethod, frame, reading_for
from metaensemble.methods.weightformer import WeightFormerLearner
from metaensemble.models import build
from metaensemble.teachers import Ensemble, Member, load_ensemble, save_member
from metaensemble.teachers.member import build_from
from metaensemble.weightformer import Predictor, load_predictor, save_predictor

NAME = "convnet,width=2"
SMALL: dict[str, Any] = {"width": 8, "heads": 2, "depth": 1}
each_frame = pytest.mark.parametrize("kind", ["first", "merge"])


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Four strangers."""
    for seed in range(4):
        make_member(tmp_path / f"{seed}.safetensors", seed, NAME)
    return load_ensemble([tmp_path])


@pytest.fixture
def kin(tmp_path: Path, zoo: Ensemble, make_member: Callable[..., Member]) -> Ensemble:
    """Three of one start."""
    folder = tmp_path / "kin"
    folder.mkdir()
    for seed in range(3):
        make_member(folder / f"{seed}.safetensors", seed, NAME, zoo.members[0])
    return load_ensemble([folder])


def learner_of(members: Ensemble, **fields: Any) -> WeightFormerLearner:
    """Return a learner whose generator is awake."""
    with seeded("learner"):
        student = build(NAME, len(members.info.classes), members.info.input_shape)
        method = WeightFormerMethod.model_validate({**SMALL, **fields})
        learner = method.learner(student, members)
    random = generator("awake")
    with torch.no_grad():
        for tensor in learner.generator.decode.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=random))
    return learner


def shuffled(folder: Path, members: Ensemble) -> Ensemble:
    """Return the same functions with every member's hidden units in another order."""
    folder.mkdir()
    info = members.info
    spec = spec_for(build_from(info), info.input_shape)
    for i, member in enumerate(members.members):
        permutations = random_permutations(spec, seed=i)
        state = apply_permutations(spec, permutations, member.state())
        save_member(folder / f"{i}.safetensors", state, info)
    return load_ensemble([folder])


def close(first: State, second: State) -> bool:
    return all(torch.allclose(first[k], second[k], atol=1e-4) for k in first)


@each_frame
def test_the_order_of_a_teachers_hidden_units_changes_nothing(
    tmp_path: Path, zoo: Ensemble, kind: str
):
    training, unseen = zoo.subset([0, 1]), zoo.subset([2, 3])
    moved = shuffled(tmp_path / "moved", unseen)
    aligned = learner_of(training, align="always", frame=kind).predictor()
    plain = learner_of(training).predictor()
    for predictor, same in ((aligned, True), (plain, False)):
        one = predictor.predict(reading_for(predictor, unseen).states)
        other = predictor.predict(reading_for(predictor, moved).states)
        assert close(one, other) is same


@each_frame
def test_aligned_members_compute_what_they_did_and_lie_closer(
    zoo: Ensemble, kind: frame.FrameKind
):
    states = zoo.states()
    reference = frame.make_frame(zoo.info, states, kind)
    aligned = frame.to_frame(zoo.info, reference, states)
    images = torch.randn(5, *zoo.info.input_shape, generator=generator("images"))
    for member, state, before in zip(zoo.members, aligned, states, strict=True):
        network = member.network()
        logits = network(images)
        network.load_state_dict(state)
        torch.testing.assert_close(network(images), logits, rtol=1e-3, atol=1e-4)

        def product(one: State) -> float:
            return sum(float((one[k] * reference[k]).sum()) for k in one)

        assert product(state) >= product(before) * (1 - 1e-6)
    if kind == "first":
        assert close(aligned[0], states[0])


def test_a_merged_frame_is_the_mean_of_the_aligned_zoo(zoo: Ensemble):
    states = zoo.states()
    merged = frame.make_frame(zoo.info, states, "merge")
    plain = torch.stack([state["conv2.weight"] for state in states]).mean(0)
    assert merged.keys() == states[0].keys()
    assert merged["conv2.weight"].norm() > plain.norm()  # less cancels
    assert merged["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("fields", "strangers", "family"),
    [
        ({}, None, None),
        ({"align": "auto"}, "frame", None),
        ({"align": "always"}, "frame", "frame"),
        ({"reference": "aligned_mean"}, "frame", "frame"),
    ],
)
def test_kinship_or_the_user_decides(
    zoo: Ensemble,
    kin: Ensemble,
    fields: dict[str, Any],
    strangers: str | None,
    family: str | None,
):
    for members, expected in ((zoo, strangers), (kin, family)):
        found = learner_of(members, **fields).predictor().frame
        assert (found is not None) == (expected == "frame")


@pytest.mark.parametrize(
    ("fields", "strangers", "family"),
    [
        ({}, "first", "mean"),
        ({"align": "auto"}, "first", "mean"),
        ({"readout": "pooled"}, "first", "mean"),
        ({"readout": "pooled", "align": "auto"}, "mean", "mean"),
        ({"reference": "aligned_mean"}, "aligned_mean", "aligned_mean"),
    ],
)
def test_the_reference_that_auto_stands_for(
    zoo: Ensemble, kin: Ensemble, fields: dict[str, Any], strangers: str, family: str
):
    for members, expected in ((zoo, strangers), (kin, family)):
        assert learner_of(members, **fields).generator.config.reference == expected


def test_the_aligned_mean_of_a_sleeping_generator(zoo: Ensemble):
    method = WeightFormerMethod.model_validate({**SMALL, "reference": "aligned_mean"})
    student = build(NAME, len(zoo.info.classes), zoo.info.input_shape)
    written = method.learner(student, zoo).export().state_dict()
    states = zoo.states()
    aligned = frame.to_frame(zoo.info, states[0], states)
    for name, tensor in written.items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name] for state in aligned]).mean(0)
            torch.testing.assert_close(tensor, mean)


def test_the_frame_is_saved_with_the_predictor(tmp_path: Path, zoo: Ensemble):
    path = tmp_path / "wf.safetensors"
    predictor = learner_of(zoo, align="always", frame="merge").predictor()
    save_predictor(path, predictor)
    loaded = load_predictor(path)
    assert predictor.frame is not None
    assert loaded.frame is not None
    assert loaded.info.frame
    assert loaded.frame.keys() == predictor.frame.keys()
    assert all(torch.equal(loaded.frame[k], t) for k, t in predictor.frame.items())
    one = predictor.predict(reading_for(predictor, zoo).states)
    other = loaded.predict(reading_for(loaded, zoo).states)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frame_that_is_lost_is_missed(tmp_path: Path, zoo: Ensemble):
    path = tmp_path / "wf.safetensors"
    save_predictor(path, learner_of(zoo, align="always").predictor())
    state, metadata = load_state(path)
    assert metadata is not None
    without = {k: t for k, t in state.items() if not k.startswith("frame/")}
    save_state(path, without, metadata)
    with pytest.raises(InputError, match="must be a predictor of this version"):
        load_predictor(path)
    save_state(path, state, {**metadata, "frame": False})
    with pytest.raises(InputError, match="must be a predictor of this version"):
        load_predictor(path)


def test_files_of_before_these_options_load_as_they_were(tmp_path: Path, zoo: Ensemble):
    path = tmp_path / "wf.safetensors"
    predictor: Predictor = learner_of(zoo).predictor()
    save_predictor(path, predictor)
    state, metadata = load_state(path)
    assert metadata is not None
    for record in (metadata["config"], metadata["training"]["method"]):
        for name in ("attention", "readout"):
            del record[name]
    del metadata["frame"]
    metadata["config"]["max_teachers"] = 8
    save_state(path, state, metadata)
    loaded = load_predictor(path)
    assert loaded.frame is None
    assert loaded.info.config.attention == "full"
    assert loaded.info.config.readout == "first"
    one, other = loaded.predict(zoo.states()), predictor.predict(zoo.states())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_that_cannot_be_aligned(
    monkeypatch: pytest.MonkeyPatch, zoo: Ensemble
):
    def refuse(*_: object) -> None:
        raise InputError("the layers must be known, but 'odd' is not; leave it out")

    monkeypatch.setattr(frame, "spec_for", refuse)
    with pytest.raises(InputError, match=r"leave it out; or .* with --align never"):
        learner_of(zoo, align="always")
    learner_of(zoo)  # nothing to derive
