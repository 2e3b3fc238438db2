"""What is said of the members before the work, and whether it is so."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import metaensemble as me
from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog
from metaensemble.merging import Soup
from metaensemble.methods import KD
from metaensemble.metrics import measure
from metaensemble.report import Diagnosis
from metaensemble.teachers import Ensemble, Member, kinship, save_member
from metaensemble.workflows import diagnosis as diagnosing
from metaensemble.workflows.diagnosis import (
    against_best,
    diagnose,
    mergeable,
    misfit,
    relative_distance,
    standard_error,
)
from metaensemble.workflows.fuse import tell
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.registry import METHODS

Make = Callable[..., Member]


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    """A session with 60 validation images: enough for a headroom to show."""
    split = dataclasses.replace(digits, validation=digits.test.subset(torch.arange(60)))
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, split, None, RunLog(quiet=True))


@pytest.fixture
def kin(make_member: Make, tmp_path: Path) -> Ensemble:
    start = make_member(tmp_path / "start.safetensors", 0)
    return Ensemble(
        tuple(
            make_member(tmp_path / f"{seed}.safetensors", seed, start=start)
            for seed in (1, 2, 3)
        )
    )


@pytest.fixture
def strangers(make_member: Make, tmp_path: Path) -> Ensemble:
    members = (make_member(tmp_path / f"{s}.safetensors", s) for s in (5, 6))
    return Ensemble(tuple(members))


def found(session: Session, ensemble: Ensemble, **changes: object) -> Diagnosis:
    """A diagnosis whose ensemble gains plenty, whatever the members are."""
    gain = {"ensemble": 0.9, "headroom": 0.4, "headroom_error": 0.01}
    diagnosis = diagnose(session, ensemble).model_copy(update=gain | changes)
    names = diagnosing._recommended(diagnosis, ensemble)
    told = diagnosing._verdict(diagnosis, names)
    return diagnosis.model_copy(update={"recommended": names, "verdict": told})


def test_the_figures_are_those_of_the_validation_split(session, kin):
    diagnosis = diagnose(session, kin)
    split = session.data.validation
    images = kin.info.normalization(split.batch(torch.arange(60)))
    with torch.no_grad():
        logits = torch.stack([m.network()(images) for m in kin.members])
    decisions = logits.argmax(-1)
    right = (decisions == split.labels).double()
    together = (logits.softmax(-1).mean(0).argmax(-1) == split.labels).double()
    assert diagnosis.images == 60
    assert diagnosis.mean_member == pytest.approx(float(right.mean()))
    assert diagnosis.ensemble == pytest.approx(float(together.mean()))
    gain = together - right.mean(0)
    assert diagnosis.headroom == pytest.approx(float(gain.mean()))
    assert diagnosis.headroom_error == pytest.approx(float(gain.std()) / math.sqrt(60))
    differ = [(decisions[a] != decisions[b]).double().mean() for a, b in PAIRS]
    assert diagnosis.disagreement == pytest.approx(float(torch.stack(differ).mean()))
    each = [measure(rows.log_softmax(-1), split.labels) for rows in logits]
    best = max(range(3), key=lambda i: (each[i].accuracy, -each[i].nll))
    assert diagnosis.best_member == kin.members[best].name
    assert diagnosis.best_member_accuracy == each[best].accuracy
    assert diagnosis.kinship == kinship(kin)


PAIRS = ((0, 1), (0, 2), (1, 2))


def test_the_distance_is_that_of_the_weight_matrices(kin):
    flat = [
        torch.cat([t.flatten() for t in m.state().values() if t.ndim > 1])
        for m in kin.members
    ]
    wanted = [
        (flat[a] - flat[b]).norm() / ((flat[a].norm() + flat[b].norm()) / 2)
        for a, b in PAIRS
    ]
    mean = float(torch.stack(wanted).mean())
    assert relative_distance(kin) == pytest.approx(mean, rel=1e-5)


def test_the_work_counts_its_teacher_images_itself(session, kin):
    diagnose(session, kin)
    assert session.cache.images_asked == 0


def test_members_of_one_basin_are_averaged_first(session, kin):
    diagnosis = found(session, kin)
    assert mergeable(diagnosis)
    soup = "greedy_soup" if "greedy_soup" in METHODS else "soup"
    assert diagnosis.recommended == [soup, "kd"]
    assert f"try {soup} first, and kd if more is wanted" in diagnosis.verdict
    assert misfit(diagnosis, Soup()) is None


def test_independent_members_are_merged_otherwise_or_distilled(session, strangers):
    diagnosis = found(session, strangers, soup_drop=0.7)
    merge, kd = diagnosis.recommended
    assert merge in ("regression_merge", "repair", "aligned_soup")
    assert merge in METHODS
    assert kd == "kd"
    assert diagnosis.verdict.startswith("The members are independent")
    assert misfit(diagnosis, Soup()) == (
        "warning: soup averages weights as they are, for members of one start, but the "
        "mean of these members' weights loses 70.0 points of accuracy; choose "
        f"{merge} or kd"
    )
    assert misfit(diagnosis, KD()) is None


def test_a_start_does_not_count_where_the_mean_of_the_weights_fails(session, kin):
    diagnosis = found(session, kin, soup_drop=0.5)
    assert not mergeable(diagnosis)
    assert "share a start but not a basin" in diagnosis.verdict


def test_without_a_barrier_the_start_decides(session, kin, strangers):
    nothing = {"barrier": None, "soup_drop": None}
    assert mergeable(found(session, kin, **nothing))
    apart = found(session, strangers, **nothing)
    assert not mergeable(apart)
    assert "these members do not share one" in str(misfit(apart, Soup()))


def test_the_mean_of_all_counts_not_that_of_the_first_two(
    session, template_member, tmp_path
):
    scales = {"one": 1.0, "two": 1.1, "upside_down": -9.0}
    members = [
        template_member(tmp_path / f"{name}.safetensors", scale)
        for name, scale in scales.items()
    ]
    diagnosis = diagnose(session, Ensemble(tuple(members)))
    assert diagnosis.barrier is not None
    assert diagnosis.soup_drop is not None
    assert diagnosis.barrier.as_given.accuracy_drop <= 0
    assert diagnosis.soup_drop > 0.4  # the mean of (1, 1.1, -9) names the farthest
    assert not mergeable(diagnosis)


def test_no_gain_is_not_worth_the_bother(session, template_member, tmp_path):
    names = ("one", "two")
    members = [
        template_member(tmp_path / f"{name}.safetensors", 1 + 0.001 * i)
        for i, name in enumerate(names)
    ]
    diagnosis = diagnose(session, Ensemble(tuple(members)))
    assert (diagnosis.headroom, diagnosis.disagreement) == (0, 0)
    assert diagnosis.recommended == ["best_member"]
    assert "do not bother, ship two.safetensors" in diagnosis.verdict
    assert "60 validation images" in diagnosis.verdict


def test_members_of_two_architectures_are_distilled(session, make_member, tmp_path):
    one = make_member(tmp_path / "one.safetensors", 0)
    wide = make_member(tmp_path / "wide.safetensors", 1, "mlp,width=16")
    diagnosis = found(session, Ensemble((one, wide)))
    assert diagnosis.architectures == ["mlp,width=16", "mlp,width=8"]
    assert diagnosis.kinship is diagnosis.distance is diagnosis.barrier is None
    assert diagnosis.recommended == ["kd"]
    assert "cannot be merged one by one: distil them with kd" in diagnosis.verdict
    assert diagnosis.lines[0] == "2 members of mlp,width=16, mlp,width=8"


def test_members_of_two_normalisations_are_diagnosed_and_distilled(
    session, make_member, tmp_path
):
    one = make_member(tmp_path / "one.safetensors", 0)
    grey = one.info.normalization.model_copy(update={"mean": (0.5,)})
    info = one.info.model_copy(update={"normalization": grey})
    members = (one, save_member(tmp_path / "grey.safetensors", one.state(), info))
    fused = me.fuse(
        Ensemble(members),
        session.data,
        KD(epochs=0.1, batch_size=54),
        device="cpu",
        cache=tmp_path / "cache",
    )
    assert fused.report.diagnosis is not None
    assert fused.report.diagnosis.kinship is None
    assert fused.report.regime is None


def test_members_of_one_name_are_told_apart_by_their_folders(
    session, make_member, tmp_path
):
    members = [
        make_member(tmp_path / f / "m.safetensors", i) for i, f in enumerate("ab")
    ]
    diagnosis = diagnose(session, Ensemble(tuple(members)))
    assert diagnosis.best_member in {str(member.path) for member in members}


def test_a_name_with_brackets_is_shown_whole(session, make_member, tmp_path, capsys):
    names = ("[bold]a.safetensors", "[red]b.safetensors")
    members = [make_member(tmp_path / name, i) for i, name in enumerate(names)]
    diagnosis = diagnose(session, Ensemble(tuple(members)))
    tell(dataclasses.replace(session, log=RunLog()), diagnosis)
    assert f"best is {diagnosis.best_member}" in capsys.readouterr().err
    assert diagnosis.best_member in names


def test_the_student_is_compared_image_by_image(session, kin):
    labels = session.data.validation.labels
    logits = session.cache.ensemble_logits(kin, session.data.validation)
    own, best = against_best(session, kin, logits[0].log_softmax(-1))
    member = logits[best].log_softmax(-1)
    again, _ = against_best(session, kin, member)
    assert (again.worse, again.difference, again.error) == (False, 0, 0)
    assert own.sha256 == kin.members[best].sha256
    perfect = torch.full_like(member, -20).scatter(1, labels[:, None], 0)
    above, _ = against_best(session, kin, perfect.log_softmax(-1))
    assert not above.worse
    assert above.student_accuracy == 1
    gain = 1 - (member.argmax(-1) == labels).double()
    assert above.error == pytest.approx(float(gain.std()) / math.sqrt(60))


def test_at_a_tie_the_nll_decides(session, kin):
    logits = session.cache.ensemble_logits(kin, session.data.validation)
    _, best = against_best(session, kin, logits[0].log_softmax(-1))
    vaguer = (logits[best] / 1000).log_softmax(-1)
    surer = (logits[best] * 1.01).log_softmax(-1)
    verdicts = [against_best(session, kin, x)[0] for x in (vaguer, surer)]
    assert all(v.difference == 0 for v in verdicts)
    for verdict in verdicts:
        assert verdict.worse == (verdict.student_nll > verdict.member_nll)
        assert verdict.nll_error > 0
    told = next(v for v in verdicts if v.worse).sentence("soup")
    assert "nats" in told


def test_one_image_tells_nothing():
    assert standard_error(torch.zeros(1, dtype=torch.float64)) == 1


def test_the_interface_falls_back_likewise(session, template_member, tmp_path):
    members = (
        template_member(tmp_path / "good.safetensors"),
        template_member(tmp_path / "bad.safetensors", -3.0),
    )
    ensemble, cache = Ensemble(members), tmp_path / "cache"

    def fused(fallback):
        return me.fuse(
            ensemble, session.data, "soup", fallback=fallback, device="cpu", cache=cache
        )

    made, kept = fused(None), fused("best_member")
    assert made.report.against_best is not None
    assert made.report.against_best.worse
    assert not made.report.fell_back
    assert kept.report.fell_back
    state = kept.save(tmp_path / "kept.safetensors").state()
    assert torch.equal(state["fc.weight"], members[0].state()["fc.weight"])
    assert me.evaluate(kept, session.data.test) == kept.report.student.test
    with pytest.raises(InputError, match="must be None or 'best_member', but is 'x'"):
        fused("x")
