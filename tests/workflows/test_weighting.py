"""Which members the ensemble has, and how much each weighs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metaensemble as me
from metaensemble.cli import main
from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog
from metaensemble.merging import Soup
from metaensemble.methods import KD
from metaensemble.metrics import nll
from metaensemble.report import read_report
from metaensemble.teachers import (
    Ensemble,
    OutputCache,
    Selection,
    greedy_selection,
    load_ensemble,
    load_member,
    simplex_weights,
)
from metaensemble.workflows import weighting
from metaensemble.workflows.fuse import Choices, fuse_and_find
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.reporting import measure_student
from metaensemble.workflows.students import distillation_images
from metaensemble.workflows.weighting import parse_weights, weighed

SHORT = KD(epochs=1, batch_size=27, views=1)


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


@pytest.fixture
def zoo(tmp_path: Path, template_member, make_member) -> Ensemble:
    """Two good members of one start, one that is always wrong, two untrained ones."""
    folder = tmp_path / "zoo"
    good = template_member(folder / "a.safetensors", 0.2)
    made = [good, template_member(folder / "b.safetensors", 0.3)]
    made.append(template_member(folder / "c.safetensors", -1.0))
    for seed in (0, 1):
        made.append(make_member(folder / f"d{seed}.safetensors", seed, "mlp,depth=0"))
    return Ensemble(tuple(made))


def test_equal_weights_leave_the_ensemble_as_it_is(session, zoo):
    assert weighed(session, zoo, "none", "equal").ensemble is zoo
    assert weighed(session, zoo, "none", "equal").notes == ()
    assert list(session.cache.folder.parent.glob("cache/*.npy")) == []


def test_given_weights(session, zoo):
    found = weighed(session, zoo, "none", "3,0,0,1,0")
    assert found.ensemble.members == (zoo.members[0], zoo.members[3])
    assert found.ensemble.shares == (0.75, 0.25)
    assert found.notes == (
        "weights of the teachers' outputs, as given: 0.750 a.safetensors, "
        "0.250 d0.safetensors",
    )
    assert weighed(session, zoo, "none", (3.0, 0.0, 0.0, 1.0, 0.0)) == found


def test_weights_by_validation(session, zoo):
    found = weighed(session, zoo, "none", "validation")
    split = session.data.validation
    logits = session.cache.ensemble_logits(zoo, split)
    expected = simplex_weights(logits, split.labels)
    assert found.ensemble == zoo.weighted(expected)
    assert zoo.members[2] not in found.ensemble.members
    left = 5 - len(found.ensemble)
    assert found.teacher_images == left * len(split)
    before = nll(zoo.log_probs(logits), split.labels)
    kept = [i for i, weight in enumerate(expected) if weight]
    after = nll(found.ensemble.log_probs(logits[kept]), split.labels)
    assert after < before
    assert found.notes[1] == (
        f"validation NLL of the ensemble: {after:.4f} as weighed, {before:.4f} with "
        "all 5 members alike"
    )


def test_greedy_selection_and_its_notes(session, zoo):
    found = weighed(session, zoo, "greedy", "equal")
    split = session.data.validation
    logits = session.cache.ensemble_logits(zoo, split)
    selection = greedy_selection(logits, split.labels)
    assert found.ensemble == zoo.weighted(selection.weights)
    kept = [i for i, count in enumerate(selection.counts) if count]
    taken = ", ".join(f"{selection.counts[i]} x {zoo.members[i].name}" for i in kept)
    assert found.notes[0] == (
        f"greedy selection took {len(kept)} of 5 members: {taken}"
    )
    assert f"{selection.nll:.4f} as weighed" in found.notes[1]
    both = weighed(session, zoo, "greedy", "validation")
    assert all(m in found.ensemble.members for m in both.ensemble.members)
    assert len(both.notes) == 3


def test_the_count_of_the_sessions_cache_stays(session, zoo):
    weighed(session, zoo, "greedy", "validation")
    assert (session.cache.images_asked, session.cache.images_run) == (0, 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("best", "must be equal, validation, or one number per member .* is 'best'"),
        ("0.5;0.5", "must be equal, validation, or one number per member"),
        ("", "must be equal, validation, or one number per member"),
        ("0.5,0.5", "one number per member, but are 2 for 5 members; give as many"),
        ("1,1,1,1,-1", "finite, not negative and not all 0, but are '1,1,1,1,-1'; me"),
        ("0,0,0,0,0", "not all 0"),
        ("nan,1,1,1,1", "finite"),
        ((1.0, 2.0), "one number per member, but are 2 for 5 members"),
        ((0.0,) * 5, "not all 0, but are 0,0,0,0,0; mend"),
    ],
)
def test_weights_that_are_none(session, zoo, weights: Any, message: str):
    with pytest.raises(InputError, match=f"--teacher-weights .*{message}"):
        fuse_and_find(session, zoo, SHORT, Choices(teacher_weights=weights))


def test_selection_weighs_itself(session, zoo):
    message = "must be equal or validation with --select greedy, .* but is '1,1,1,1,1'"
    with pytest.raises(InputError, match=message):
        weighed(session, zoo, "greedy", "1,1,1,1,1")
    assert parse_weights("equal", 5) is None


def test_members_of_weight_zero_are_never_run_on_training_images(session, zoo):
    choices = Choices(teacher_weights="1,2,0,0,0")
    made = fuse_and_find(session, zoo, SHORT, choices)
    assert made.ensemble.shares == pytest.approx((1 / 3, 2 / 3))
    images = len(distillation_images(session))
    assert made.student.teacher_images == 2 * (images + 6)
    fresh = replace(session, cache=OutputCache(session.cache.folder))
    selected = fuse_and_find(fresh, zoo, SHORT, Choices(select="greedy"))
    kept = len(selected.ensemble)
    assert kept < 5
    assert selected.student.teacher_images == kept * (images + 6) + (5 - kept) * 6


def test_the_student_follows_the_weights(session, zoo):
    # all weight on one member is that member alone, bit for bit
    alone = fuse_and_find(session, zoo.subset([0]), SHORT).student
    weighty = fuse_and_find(
        session, zoo, SHORT, Choices(teacher_weights="1,0,0,0,0")
    ).student
    other = fuse_and_find(
        session, zoo, SHORT, Choices(teacher_weights="1,1,0,0,0")
    ).student
    own = alone.network.state_dict()
    same, different = weighty.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(own[k], same[k]) for k in own)
    assert not all(torch.equal(own[k], different[k]) for k in own)


def test_the_report_is_of_the_weighted_ensemble(session, zoo):
    choices = Choices(teacher_weights="3,1,0,0,0")
    made = fuse_and_find(session, zoo, SHORT, choices)
    report = measure_student(
        session,
        made.ensemble,
        made.student,
        command="a test",
        method=SHORT,
        found=made.found,
    ).report
    assert [row.weight for row in report.teachers] == [0.75, 0.25]
    test = session.data.test
    logits = session.cache.ensemble_logits(zoo, test)
    mixed = (0.75 * logits[0].softmax(-1) + 0.25 * logits[1].softmax(-1)).log()
    assert report.ensemble.test.nll == pytest.approx(nll(mixed, test.labels), abs=1e-5)
    assert any(n.startswith("weights of the teachers' outputs") for n in report.notes)
    # the best member is sought among all that were given
    assert report.against_best is not None


def test_a_merge_takes_those_that_were_selected(
    session, tmp_path, make_member, monkeypatch
):
    first = make_member(tmp_path / "0.safetensors", 0)
    zoo = Ensemble(
        tuple(
            make_member(tmp_path / f"{seed}.safetensors", seed, start=first)
            for seed in (1, 2, 3, 4)
        )
    )
    selection = Selection((3, 0, 1, 1), 1.0, (1.0,) * 5)
    monkeypatch.setattr(weighting, "greedy_selection", lambda *_: selection)
    made = fuse_and_find(session, zoo, Soup(), Choices(select="greedy"))
    kept = [zoo.members[i] for i in (0, 2, 3)]
    assert made.ensemble.members == tuple(kept)
    assert made.ensemble.shares == (0.6, 0.2, 0.2)
    states = [member.state() for member in kept]
    for name, tensor in made.student.network.state_dict().items():
        mean = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(tensor, mean)  # however often each was taken


def test_a_merge_of_one_is_that_member(session, zoo):
    made = fuse_and_find(session, zoo, Soup(), Choices(teacher_weights="0,1,0,0,0"))
    state = zoo.members[1].state()
    own = made.student.network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state)
    assert "one member is left for soup: it is the student" in made.found.notes


def test_the_command_selects_and_weighs(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    folder = zoo.members[0].path.parent
    out = tmp_path / "run"
    line = (
        f"fuse {folder} --data digits --limit-train 60 --method kd --epochs 1 --quiet "
        f"--select greedy --out {out}"
    )
    assert main(line.split()) == 0
    report = read_report(out)
    assert any("greedy selection took" in note for note in report.notes)
    value = json.loads((out / "report.json").read_text())
    assert [r.weight for r in report.teachers] == [
        row.get("weight") for row in value["teachers"]
    ]
    data = me.load_data("digits", limit_train=60)
    record = load_member(out / "student.safetensors", data=data).info.training
    shas = [m.sha256 for m in zoo.members]
    assert set(record["teachers"]) < set(shas)
    if len(record["teachers"]) > 1:
        assert sum(record["teacher_weights"]) == pytest.approx(1)


def test_the_verdict_on_a_single_teacher(zoo, digits, tmp_path):
    one = zoo.subset([0])
    fused = me.fuse(one, digits, SHORT, device="cpu", cache=tmp_path / "cache")
    teacher = fused.report.teachers[0].test.accuracy
    student = fused.report.student.test.accuracy
    assert fused.report.verdict == (
        f"kd with one teacher: {100 * student:.1f}%, where the teacher has "
        f"{100 * teacher:.1f}% ({100 * (student - teacher):+.1f} points)."
    )
    assert fused.report.diagnosis is None
    message = "^soup must have at least 2 members, but got 1; name more, or choose --m"
    with pytest.raises(InputError, match=message):
        me.fuse(one, digits, "soup")


def test_the_interface_takes_the_same(zoo, digits, tmp_path):
    ensemble = load_ensemble([zoo.members[0].path.parent], data=digits)
    fused = me.fuse(
        ensemble,
        digits,
        SHORT,
        teacher_weights=[0.5, 0.5, 0.0, 0.0, 0.0],
        device="cpu",
        cache=tmp_path / "cache",
    )
    assert len(fused.report.teachers) == 2
    with pytest.raises(InputError, match=r"select must be None or 'greedy', but is 'b"):
        me.fuse(ensemble, digits, select="best")  # pyright: ignore
