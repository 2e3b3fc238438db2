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
    fusion = fuse_and_find(session, ensemble, Auto(budget=f"{41 * images}images"))
    choice = fusion.found.choice
    assert isinstance(choice, Choice)
    names = [row.method for row in choice.candidates]
    trained = ["kd", "dkd"]
    assert names[0] == "best_member"
    assert names[-2:] == trained
    assert "regression_merge" in names
    seen = sum(row.train_images for row in choice.candidates)
    assert 0.8 * 41 * images < seen <= 41 * images
    assert choice.student.further <= choice.student.further_error
    assert choice.student.behind <= 2 * choice.student.behind_error
    assert fusion.student.train_images == choice.student.train_images
    assert any("candidates took" in note for note in fusion.student.notes)
    # those that train start from the candidate without training that is nearest
    free = [row for row in choice.candidates if not row.settings]
    nearest = min(free, key=lambda row: row.kl).method
    assert all(f"from {nearest}" in row.settings for row in choice.candidates[-2:])


def test_a_small_budget_is_for_one_training(session, ensemble):
    images = len(session.data.train)
    fusion = fuse_and_find(session, ensemble, Auto(budget=f"{8 * images}images"))
    assert fusion.found.choice is not None
    rows = fusion.found.choice.candidates
    (only,) = [row for row in rows if row.settings]
    assert only.method == "kd"
    assert 0.8 * 8 * images < only.train_images <= 8 * images


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


def chosen(session, ensemble, *said: tuple[str, Tensor]) -> Choice:
    """Return the choice among candidates that say log-probabilities."""
    attempts = Attempts(session, ensemble, Auto(within=0.1), _none, None)
    student = _student(session, ensemble)
    attempts.tried += [Tried(name, "", student, own) for name, own in said]
    return attempts.chosen()[1]


def spoken(session, ensemble) -> Tensor:
    """Return what the ensemble says to the validation images."""
    split = session.data.validation
    return ensemble.log_probs(session.cache.ensemble_logits(ensemble, split))


def blurred(said: Tensor, share: float) -> Tensor:
    """Return the same decisions, farther from what was said."""
    return ((1 - share) * said.exp() + share / said.shape[1]).log()


def wrong_where(said: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the same, but just wrong in the first `count` right decisions."""
    hit = (said.argmax(1) == labels).nonzero().flatten()[:count]
    probs = said[hit].exp()
    (first, second), places = (one.T for one in probs.topk(2))
    rows = torch.arange(len(hit))
    probs[rows, places[0]] = (first + second) / 2 - 1e-4
    probs[rows, places[1]] = (first + second) / 2 + 1e-4
    return said.index_copy(0, hit, probs.log())


def test_the_nearest_to_the_ensemble_is_chosen(session, ensemble):
    said = spoken(session, ensemble)
    rows = [(f"{s}", blurred(said, s)) for s in (0.5, 0.1, 0.3)]
    choice = chosen(session, ensemble, *rows)
    assert choice.student.method == "0.1"
    assert choice.student.further == 0
    assert choice.student.accuracy == choice.ensemble_accuracy
    first, _, last = choice.candidates
    assert first.further > last.further > last.further_error > 0
    assert choice.below_ensemble == 0
    assert not choice.keep_ensemble


def test_an_impossible_class_does_not_blind_the_choice(session, ensemble, monkeypatch):
    said = torch.full((len(session.data.validation), 10), -torch.inf)
    said[:, 0] = 0.0
    monkeypatch.setattr(Ensemble, "log_probs", lambda *_: said)
    rows = [(f"{s}", blurred(said, s)) for s in (0.5, 0.1)]
    choice = chosen(session, ensemble, *rows)
    assert choice.student.method == "0.1"
    assert choice.student.kl == pytest.approx(-torch.tensor(0.91).log().item())


def test_a_member_as_near_is_chosen_and_nothing_else(session, ensemble):
    said = spoken(session, ensemble)
    far = blurred(said, 0.4)
    even = torch.arange(len(said)) % 2 == 0
    near = blurred(said, 0.1)
    rows = (
        ("best_member", torch.where(even[:, None], far, near)),
        ("kd", torch.where(even[:, None], near, far)),
        ("dkd", far),
    )
    choice = chosen(session, ensemble, *rows)
    member, kd, dkd = choice.candidates
    assert abs(member.kl - kd.kl) < max(member.further_error, kd.further_error)
    assert dkd.further > dkd.further_error
    assert choice.keep_member
    other = chosen(session, ensemble, ("soup", rows[0][1]), *rows[1:])
    assert other.student.kl == min(row.kl for row in other.candidates)


def test_what_is_clearly_less_accurate_is_out(session, ensemble):
    said = spoken(session, ensemble)
    labels = session.data.validation.labels
    far = blurred(said, 0.9)
    rows = (("soup", wrong_where(said, labels, 12)), ("kd", far))
    choice = chosen(session, ensemble, *rows)
    soup, kd = choice.candidates
    assert soup.kl < kd.kl
    assert soup.behind > 2 * soup.behind_error
    assert choice.student is kd
    none = wrong_where(far, labels, len(labels))
    worse = chosen(session, ensemble, ("kd", none))
    assert worse.keep_ensemble
    assert "keep the ensemble: no student comes within 10 points" in worse.sentence


def test_the_best_member_may_be_the_answer(session, ensemble):
    said = spoken(session, ensemble)
    rows = (("best_member", said), ("kd", said))
    choice = chosen(session, ensemble, *rows)
    assert choice.keep_member
    assert not choice.keep_ensemble
    assert choice.sentence.startswith("Do not bother: of 2 candidates none is clearly")
    assert choice.best_member in choice.sentence


def test_domination_needs_all_and_one(session, ensemble):
    said = spoken(session, ensemble)
    rows = (("soup", said), ("kd", blurred(said, 0.5)))
    soup, kd = chosen(session, ensemble, *rows).candidates
    assert dominated(kd, [soup, kd]) == (kd.nll > soup.nll)
    assert not dominated(soup, [soup, soup])
    better = soup.model_copy(update={"accuracy": soup.accuracy + 0.1})
    assert dominated(soup, [better, soup])
    assert not dominated(better, [better, soup])


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

    def dying(self: Attempts, method, settings: str, *start) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(method.name_)
        attempt(self, method, settings, *start)

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
