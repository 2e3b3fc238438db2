"""The method that chooses: what it tries within a budget, and how it picks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaensemble.core.distributed import ToldError
from metaensemble.core.errors import DiskError, InputError
from metaensemble.engine import RunLog
from metaensemble.methods import KD, Auto, Supervised
from metaensemble.report.choice import Choice
from metaensemble.teachers import Ensemble, Member
from metaensemble.workflows.auto import Attempts
from metaensemble.workflows.candidates import Tried, dominated
from metaensemble.workflows.diagnosis import diagnose
from metaensemble.workflows.fuse import Choices, fuse_and_find
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.students import Student
from metaensemble.workflows.teach import teach_members


@pytest.fixture(scope="module")
def session(digits_300, tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp("auto")
    options = RunOptions(device="cpu", cache=folder / "cache")
    return open_session(options, digits_300, None, RunLog(quiet=True))


@pytest.fixture(scope="module")
def digits_300():
    from metaensemble.data import load_data

    return load_data("digits", limit_train=300, unlabelled=False)


@pytest.fixture(scope="module")
def ensemble(session: Session, tmp_path_factory) -> Ensemble:
    """Three independent members that have learned something."""
    folder = tmp_path_factory.mktemp("zoo")
    method = Supervised(epochs=12, batch_size=32, learning_rate=0.1)
    members = teach_members(
        session, folder, architecture="mlp,width=16", members=3, method=method
    )
    return Ensemble(tuple(members))


@pytest.mark.parametrize(
    ("text", "seconds", "images"),
    [
        ("90s", 90, None),
        ("1.5m", 90, None),
        ("2h", 7200, None),
        ("500images", None, 500),
    ],
)
def test_budgets(text, seconds, images):
    limit = Auto(budget=text).limit
    assert (limit.seconds, limit.images) == (seconds, images)


@pytest.mark.parametrize("text", ["", "10", "0s", "-5m", "ten", "5 m", "5d"])
def test_odd_budgets_are_refused(text):
    with pytest.raises(ValueError, match="a budget must be a number above 0 and s, m"):
        Auto(budget=text)


def test_candidates_come_from_cheap_to_dear_and_spend_the_budget(session, ensemble):
    images = len(session.data.train)
    fusion = fuse_and_find(session, ensemble, Auto(budget=f"{8 * images}images"))
    choice = fusion.found.choice
    assert isinstance(choice, Choice)
    names = [row.method for row in choice.candidates]
    trained = ["kd", "dkd", "meal_v2"]
    assert names[0] == "best_member"
    assert names[-3:] == trained
    assert "regression_merge" in names
    seen = sum(row.train_images for row in choice.candidates)
    assert 0.8 * 8 * images < seen <= 8 * images
    assert choice.student.behind <= choice.student.behind_error
    assert fusion.student.train_images == choice.student.train_images
    assert any("candidates took" in note for note in fusion.student.notes)
    # those that train start from the candidate without training that is nearest
    free = [row for row in choice.candidates if not row.settings]
    nearest = min(free, key=lambda row: row.kl).method
    assert all(f"from {nearest}" in row.settings for row in choice.candidates[-3:])


def test_a_small_budget_is_for_one_training(session, ensemble):
    images = len(session.data.train)
    fusion = fuse_and_find(session, ensemble, Auto(budget=f"{images}images"))
    assert fusion.found.choice is not None
    rows = fusion.found.choice.candidates
    assert [row.method for row in rows if row.settings] == ["kd"]


def test_another_architecture_is_trained_from_fresh_weights(session, ensemble):
    images = len(session.data.train)
    auto = Auto(budget=f"{images}images")
    fusion = fuse_and_find(session, ensemble, auto, Choices(student="mlp,width=8"))
    assert fusion.student.info.architecture == "mlp,width=8"
    assert fusion.found.choice is not None
    (only,) = fusion.found.choice.candidates
    assert only.method == "kd"
    assert only.settings.endswith("passes from scratch")


def test_a_full_disk_is_no_matter_of_one_candidate(session, ensemble):
    def full(*_: object) -> Student:
        raise DiskError("a file must fit on its disk, but that is full; free some")

    attempts = Attempts(session, ensemble, Auto(), full, None)
    with pytest.raises(DiskError, match="must fit on its disk"):
        attempts.merge(diagnose(session, ensemble))

    def told(*_: object) -> Student:
        raise ToldError("a file must fit on its disk, but ...", DiskError)

    attempts.make = told
    with pytest.raises(ToldError):
        attempts.merge(diagnose(session, ensemble))


def test_what_does_not_fit_the_members_is_left_out(session, ensemble):
    def odd(*_: object) -> Student:
        raise InputError("members must be odd, but are even; add one")

    attempts = Attempts(session, ensemble, Auto(), odd, None)
    attempts.merge(diagnose(session, ensemble))
    assert attempts.left_out[0] == (
        "best_member: members must be odd, but are even; add one"
    )


def test_a_budget_for_nothing_is_refused(session, ensemble):
    with pytest.raises(InputError, match="a budget must allow one candidate"):
        fuse_and_find(session, ensemble, Auto(budget="0.000001s"))
    other = Choices(student="mlp,width=8")
    with pytest.raises(InputError, match="does not; raise it to 128images or more"):
        fuse_and_find(session, ensemble, Auto(budget="20images"), other)


def test_a_budget_for_nothing_says_what_would_fit(session, ensemble):
    small = Attempts(session, ensemble, Auto(budget="20images"), _none, None)
    small.left_out = ["kd: the budget was spent"]
    assert (
        "--budget 20images does not; raise it to 128images or more "
        "(kd: the budget was spent)" in small.too_small()
    )
    timed = Attempts(session, ensemble, Auto(budget="0.001s"), _none, None)
    assert "--budget 0.001s does not; raise it to " in timed.too_small()


def test_time_is_planned_by_what_steps_take(session, ensemble):
    attempts = Attempts(session, ensemble, Auto(budget="100s"), _none, None)
    # .1 s a step, .001 s an image and teacher, nothing for validations
    attempts.kept._known["speeds"] = [0.1, 0.001, 0.0]
    images, steps = 270, 270 / KD().batch_size
    passes = attempts._passes("kd", 0.5)
    teaching = min(passes, 8) * images * 3 * 0.001
    assert passes * steps * 0.1 + teaching == pytest.approx(50, rel=0.01)
    attempts.spent = 99.9
    assert attempts._passes("kd", 1.0) < passes / 100


def chosen(session, ensemble, monkeypatch, *right: tuple[str, Tensor, float]) -> Choice:
    """Return the choice among candidates that are right where told, that sure."""
    labels = session.data.validation.labels
    attempts = Attempts(session, ensemble, Auto(within=0.1), _none, None)
    student = _student(session, ensemble)
    for name, correct, sure in right:
        wrong = (labels + 1) % 10
        said = torch.where(correct, labels, wrong)
        probs = torch.full((len(labels), 10), (1 - sure) / 9)
        probs[torch.arange(len(labels)), said] = sure
        attempts.tried.append(Tried(name, "", student, probs.log()))
    return attempts.chosen()[1]


def test_within_one_standard_error_the_lower_nll_wins(session, ensemble, monkeypatch):
    count = len(session.data.validation)
    half = torch.arange(count) < count // 2
    one_less = torch.arange(count) < count // 2 - 1
    none = torch.zeros(count, dtype=torch.bool)
    rows = (("soup", half, 0.99), ("kd", one_less, 0.6), ("dkd", none, 0.2))
    choice = chosen(session, ensemble, monkeypatch, *rows)
    assert choice.student.method == "kd"
    assert choice.candidates[1].behind == pytest.approx(1 / count)
    assert choice.candidates[2].behind > choice.candidates[2].behind_error
    assert choice.keep_ensemble
    assert "keep the ensemble: no student comes within 10 points" in choice.sentence


def test_the_best_member_may_be_the_answer(session, ensemble, monkeypatch):
    every = torch.ones(len(session.data.validation), dtype=torch.bool)
    rows = (("best_member", every, 0.9), ("kd", every, 0.8))
    choice = chosen(session, ensemble, monkeypatch, *rows)
    assert choice.keep_member
    assert not choice.keep_ensemble
    assert choice.sentence.startswith("Do not bother: of 2 candidates none is better")
    assert choice.best_member in choice.sentence


def test_domination_needs_all_and_one(session, ensemble, monkeypatch):
    every = torch.ones(len(session.data.validation), dtype=torch.bool)
    rows = (("soup", every, 0.9), ("kd", every, 0.8))
    soup, kd = chosen(session, ensemble, monkeypatch, *rows).candidates
    assert dominated(kd, [soup, kd])
    assert not dominated(soup, [soup, kd])
    assert not dominated(soup, [soup, soup])


def test_an_interrupted_choice_goes_on(
    make_member: Callable[..., Member], tmp_path: Path, monkeypatch
):
    from metaensemble.cli import main
    from metaensemble.workflows import auto

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    for seed in range(2):
        make_member(tmp_path / "zoo" / f"{seed}.safetensors", seed, "mlp,width=8")
    line = (
        "fuse zoo --method auto --budget 300images --data digits --limit-train 60 "
        "--quiet"
    )
    assert main(f"{line} --out whole".split()) == 0
    made: list[str] = []
    attempt = auto.Attempts._attempt

    def dying(self: Attempts, method, settings: str) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(method.name_)
        attempt(self, method, settings)

    with monkeypatch.context() as patch:
        patch.setattr(auto.Attempts, "_attempt", dying)
        assert main(f"{line} --out run".split()) == 130
    kept = tmp_path / ".run.partial" / ".candidates"
    assert {path.stem for path in kept.glob("*.safetensors")} == set(made)
    assert main(f"{line} --out run".split()) == 0
    whole, run = (
        json.loads(Path(name, "report.json").read_text()) for name in ("whole", "run")
    )
    assert run["student"]["sha256"] == whole["student"]["sha256"]
    assert run["choice"]["chosen"] == whole["choice"]["chosen"]
    assert not list(Path("run").glob(".*"))
    assert run["verdict"].startswith(("Of ", "Do not bother"))


def _student(session: Session, ensemble: Ensemble) -> Student:
    return Student(ensemble.members[0].network(), ensemble.info)


def _none(*_: object) -> Student:
    raise AssertionError("nothing is made here")
