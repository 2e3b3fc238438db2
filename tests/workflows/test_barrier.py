"""The line between two members: its ends, its symmetry, its bounds."""

import dataclasses
from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog, evaluate
from metaensemble.merging import AlignedSoup, BestMember, Soup
from metaensemble.methods import KD
from metaensemble.teachers import Ensemble, Member, save_member
from metaensemble.workflows import barrier
from metaensemble.workflows.barrier import barrier_after, measure_barrier, soup_drop
from metaensemble.workflows.options import RunOptions, Session, open_session

NETWORKS = ("mlp,width=8", "convnet,width=4")
ALPHAS = [0, 0.25, 0.5, 0.75, 1]


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    """A session with 60 validation images."""
    split = dataclasses.replace(digits, validation=digits.test.subset(torch.arange(60)))
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, split, None, RunLog(quiet=True))


@pytest.fixture(params=NETWORKS)
def pair(request, make_member, tmp_path: Path) -> tuple[Member, Member]:
    one, two = (
        make_member(tmp_path / f"{seed}.safetensors", seed, request.param)
        for seed in (0, 1)
    )
    return one, two


def test_there_is_no_barrier_between_a_network_and_itself(
    session, make_member, tmp_path
):
    member = make_member(tmp_path / "a.safetensors", 0)
    found = measure_barrier(session, Ensemble((member, member)), align_seed=0)
    assert found.aligned is not None
    for curve in (found.as_given, found.aligned):
        assert curve.barrier == pytest.approx(0, abs=1e-6)
        assert curve.accuracy_drop == 0
    assert soup_drop(session, Ensemble((member,) * 3)) == pytest.approx(0, abs=1e-9)


def test_the_ends_are_the_members_themselves(session, pair):
    found = measure_barrier(session, Ensemble(pair), align_seed=0)
    assert found.aligned is not None
    split = session.data.validation
    for place, member in ((0, pair[0]), (-1, pair[1])):
        own = evaluate(member.network(), member.info.normalization, split).measured
        for curve in (found.as_given, found.aligned):
            point = curve.points[place]
            assert (point.accuracy, point.nll) == (own.accuracy, own.nll)
    assert [point.alpha for point in found.as_given.points] == ALPHAS
    assert (found.first, found.second) == tuple(m.name for m in pair)
    assert found.images == 60


def test_the_way_back_is_the_same(session, pair):
    there = measure_barrier(session, Ensemble(pair)).as_given
    back = measure_barrier(session, Ensemble(pair[::-1])).as_given
    for one, other in zip(there.points, reversed(back.points), strict=True):
        assert (one.accuracy, one.alpha) == (other.accuracy, 1 - other.alpha)
        assert one.nll == pytest.approx(other.nll, rel=1e-6)
    assert there.barrier == pytest.approx(back.barrier, rel=1e-5)


def test_the_middle_is_the_soup(session, pair):
    ensemble = Ensemble(pair)
    points = measure_barrier(session, ensemble).as_given.points
    mean = (points[0].accuracy + points[-1].accuracy) / 2
    assert soup_drop(session, ensemble) == pytest.approx(mean - points[2].accuracy)


def test_aligning_a_shuffled_copy_removes_the_barrier(session, make_member, tmp_path):
    member = make_member(tmp_path / "a.safetensors", 0, "mlp,width=8,depth=1")
    state, order = member.state(), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    state = {
        "hidden.0.weight": state["hidden.0.weight"][order],
        "hidden.0.bias": state["hidden.0.bias"][order],
        "fc.weight": state["fc.weight"][:, order],
        "fc.bias": state["fc.bias"],
    }
    path = tmp_path / "b.safetensors"
    shuffled = save_member(path, state, member.info)
    found = measure_barrier(session, Ensemble((member, shuffled)), align_seed=0)
    assert found.aligned is not None
    assert found.aligned.barrier == pytest.approx(0, abs=1e-6)
    assert abs(found.as_given.barrier) > 1e-4


def test_which_methods_get_which_curves(session, pair):
    ensemble = Ensemble(pair)
    soup, notes = barrier_after(session, ensemble, Soup())
    assert soup is not None
    assert soup.aligned is None
    assert notes == ()
    aligned, notes = barrier_after(session, ensemble, AlignedSoup())
    assert aligned is not None
    assert aligned.aligned is not None
    assert aligned.as_given == soup.as_given
    for method in (BestMember(), KD()):
        assert barrier_after(session, ensemble, method) == (None, ())
    assert barrier_after(session, Ensemble(pair[:1]), Soup()) == (None, ())


def test_members_of_two_architectures_get_none(session, make_member, tmp_path):
    one = make_member(tmp_path / "one.safetensors", 0)
    wide = make_member(tmp_path / "wide.safetensors", 1, "mlp,width=16")
    assert barrier_after(session, Ensemble((one, wide)), Soup()) == (None, ())
    with pytest.raises(InputError, match="must share one architecture to be averaged"):
        measure_barrier(session, Ensemble((one, wide)))


def test_a_large_network_is_measured_on_fewer_images_or_not(
    session, pair, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(barrier, "MOST_IMAGES", 25)
    assert measure_barrier(session, Ensemble(pair)).images == 25
    monkeypatch.setattr(barrier, "AFFORDABLE_MACS", {"cpu": 1.0})
    with pytest.raises(
        InputError, match=r"within 1e\+00 multiply-accumulates, but .* leave 0 images; "
    ):
        soup_drop(session, Ensemble(pair))
    found, (note,) = barrier_after(session, Ensemble(pair), Soup())
    assert found is None
    assert note.startswith("no barrier curve: the barrier of a network must be")


def test_a_network_that_cannot_be_traced_gets_no_aligned_curve(
    session, pair, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise InputError("a network must be traceable, but this is not; give a spec")

    monkeypatch.setattr(barrier, "align", refuse)
    found, notes = barrier_after(session, Ensemble(pair), AlignedSoup())
    assert found is None
    assert notes == (
        "no barrier curve: a network must be traceable, but this is not; give a spec",
    )
