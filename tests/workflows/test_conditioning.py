"""Whether a predictor's students depend on their teachers, by known cases."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.cli import learn_weightformer, predict
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import hash_state
from metaensemble.engine import RunLog
from metaensemble.methods import WeightFormerMethod
from metaensemble.models import init_model
from metaensemble.report import read_reports
from metaensemble.report.conditioning import listening
from metaensemble.teachers import Ensemble, Member, save_member
from metaensemble.weightformer import Predictor, load_predictor
from metaensemble.workflows.conditioning import (
    centred,
    conditioning,
    disjoint,
    figures,
    mean_and_error,
    untrained_ensemble,
    with_conditioning,
)
from metaensemble.workflows.learning import learn_predictor
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.predict import best_step
from metaensemble.workflows.predicting import predicted_student, sources_of

NAME = "mlp,width=8"
KEYS = {
    "own_kl",
    "other_kl",
    "gain",
    "gain_error",
    "reference_gain",
    "reading_gain",
    "reading_error",
    "accuracy",
    "accuracy_unrelated",
    "ensembles",
}


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


def predictor_of(
    session: Session, zoo: Ensemble, *, awake: bool = False, **fields: object
) -> Predictor:
    """An untrained predictor of the zoo; if it is awake, its decoders are random."""
    shape = {"width": 8, "heads": 2, "depth": 1, "max_teachers": 4, **fields}
    method = WeightFormerMethod.model_validate(shape)
    info = zoo.info
    network = init_model(info.architecture, len(info.classes), info.input_shape, 0)
    with seeded("generator"):
        learner = method.learner(network, zoo, sources_of(session))
    predictor = learner.predictor()
    if awake:
        random = generator("awake")
        with torch.no_grad():
            for table in predictor.network.decode.values():
                for parameter in table.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=random))
    return predictor


@pytest.fixture
def pairs(make_member, tmp_path: Path) -> Callable[..., list[Ensemble]]:
    """Disjoint ensembles of two members, each of a start of its own."""

    def make(count: int = 3, architecture: str = NAME) -> list[Ensemble]:
        made = []
        for i in range(count):
            first = make_member(tmp_path / f"{i}a.safetensors", 10 * i, architecture)
            second = make_member(
                tmp_path / f"{i}b.safetensors", 10 * i + 1, architecture, start=first
            )
            made.append(Ensemble((first, second)))
        return made

    return make


def twin(member: Member, folder: Path) -> Member:
    """The same network in a file of other bytes."""
    info = member.info.model_copy(update={"training": {"twin": True}})
    folder.mkdir(exist_ok=True)
    return save_member(folder / member.name, member.state(), info)


def test_the_formulas_against_a_matrix_worked_by_hand():
    kl = torch.tensor([[1.0, 4.0, 6.0], [3.0, 2.0, 7.0], [5.0, 9.0, 3.0]]).double()
    swapped = torch.tensor([[9.0, 2.0, 3.0], [4.0, 9.0, 2.0], [3.0, 6.0, 9.0]]).double()
    expected = torch.tensor([[0.0, 2.0, 3.5], [2.0, 0.0, 5.5], [3.5, 5.5, 0.0]])
    assert torch.equal(centred(kl), expected.double())
    found = figures(kl, kl / 2, swapped)
    assert found["own_kl"] == 2
    assert found["other_kl"] == pytest.approx(34 / 6)
    assert found["gain"] == pytest.approx(11 / 3)
    assert found["gain"] == pytest.approx(found["other_kl"] - found["own_kl"])
    # leaving one ensemble out leaves one pair: 5.5, 3.5 or 2
    spread = (5.5 - 11 / 3) ** 2 + (3.5 - 11 / 3) ** 2 + (2 - 11 / 3) ** 2
    assert found["gain_error"] == pytest.approx((2 / 3 * spread) ** 0.5)
    assert found["reference_gain"] == pytest.approx(11 / 6)
    # minus 1, 2, 3 by row: 1, 2, 2, 0, 0, 3
    assert found["reading_gain"] == pytest.approx(8 / 6)


def test_the_error_is_that_of_ensembles_not_of_pairs():
    # pairs that are sums of ensembles' own parts: their mean has 2 parts of each
    random = generator("parts")
    estimates, errors = [], []
    for _ in range(400):
        parts = torch.randn(8, generator=random).double()
        mean, error = mean_and_error(parts[:, None] + parts[None, :])
        estimates.append(mean)
        errors.append(error)
    truth = torch.tensor(estimates).std()
    told = torch.tensor(errors).square().mean().sqrt()
    assert told == pytest.approx(float(truth), rel=0.15)


def test_an_easier_ensemble_and_a_better_student_do_not_count():
    student, ensemble = torch.rand(2, 5, generator=generator("kl")).double()
    gain, error = mean_and_error(centred(student[:, None] + ensemble[None, :]))
    assert gain == pytest.approx(0, abs=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


def test_identical_ensembles_gain_nothing(session, pairs, tmp_path):
    (one,) = pairs(1)
    copy = Ensemble(tuple(twin(member, tmp_path / "twins") for member in one.members))
    predictor = predictor_of(
        session, one, awake=True, reference="first", offset=True, gain=0.1
    )
    found = conditioning(session, predictor, [one, copy])
    assert found["gain"] == 0
    assert found["reference_gain"] == 0
    assert found["reading_gain"] == 0
    assert found["ensembles"] == 2
    assert found.keys() == KEYS - {"gain_error", "reading_error"}


@pytest.mark.parametrize("reference", ["first", "mean"])
@pytest.mark.parametrize("architecture", [NAME, "resnet20,width=1"])
def test_a_sleeping_generator_reads_nothing(session, pairs, reference, architecture):
    ensembles = pairs(3, architecture)
    predictor = predictor_of(session, ensembles[0], reference=reference)
    found = conditioning(session, predictor, ensembles)
    assert found.keys() == KEYS
    assert found["reading_gain"] == 0
    assert found["reading_error"] == 0
    assert found["gain"] == found["reference_gain"]
    assert found["accuracy"] == found["accuracy_unrelated"]


def test_a_fixed_offset_is_no_listening(session, pairs):
    ensembles = pairs(3)
    predictor = predictor_of(session, ensembles[0], reference="mean", offset=True)
    with torch.no_grad():
        for offset in predictor.network.offsets:
            offset += 0.1
    found = conditioning(session, predictor, ensembles)
    assert found["reading_gain"] == 0
    assert found["gain"] != found["reference_gain"]


def test_references_of_different_knowledge_listen(session, template_member, tmp_path):
    scales = [(1.0, 0.9), (-1.0, -0.9), (0.1, 0.2)]
    ensembles = [
        Ensemble(
            tuple(
                template_member(tmp_path / f"{scale}.safetensors", scale)
                for scale in pair
            )
        )
        for pair in scales
    ]
    predictor = predictor_of(session, ensembles[0], reference="mean")
    found = conditioning(session, predictor, ensembles)
    assert found["reference_gain"] > 0.1
    assert found["own_kl"] < found["other_kl"]


@pytest.mark.parametrize(
    "fields",
    [
        {"head": "direct"},
        {"head": "mixture"},
        {"head": "residual", "reference": "mean"},
        {"head": "residual", "data_tokens": 16},
        {"head": "residual", "readout": "pooled"},
        {"head": "residual", "reference": "aligned_mean"},
        {"head": "residual", "reference": "regression_merge"},
    ],
)
def test_an_awake_generator_reads_its_teachers(session, pairs, fields):
    ensembles = pairs(2)
    predictor = predictor_of(session, ensembles[0], awake=True, **fields)
    found = conditioning(session, predictor, ensembles)
    assert found["reading_gain"] != 0
    assert found == conditioning(session, predictor, ensembles)
    if fields["head"] == "direct":  # no reference: another's tokens, its student
        expected = found["other_kl"] - found["own_kl"]
        assert found["reading_gain"] == pytest.approx(expected)


def test_at_step_zero_nothing_is_read(session, pairs):
    ensembles = pairs(2)
    predictor = predictor_of(session, ensembles[0], awake=True, reference="mean")
    found = conditioning(session, predictor, ensembles, step=0.0)
    assert found["reading_gain"] == 0
    assert found["gain"] == found["reference_gain"]


def test_untrained_networks_are_seeded_and_no_start(tmp_path, pairs):
    (like,) = pairs(1)
    made = [untrained_ensemble(tmp_path / name, like, 0) for name in ("a", "b")]
    one, other = ([m.sha256 for m in ensemble.members] for ensemble in made)
    assert one == other
    assert len(set(one)) == len(like)
    info = like.info
    start = init_model(info.architecture, len(info.classes), info.input_shape, 0)
    states = [hash_state(m.state()) for m in made[0].members]
    assert hash_state(start.state_dict()) not in states


def test_what_is_refused(session, pairs, make_member, tmp_path):
    one, two = pairs(2)
    predictor = predictor_of(session, one)
    with pytest.raises(InputError, match="compare at least 2 ensembles, but got 1; na"):
        conditioning(session, predictor, [one])
    with pytest.raises(InputError, match="equally many members, but have 1 and 2; lea"):
        conditioning(session, predictor, [one, two.subset([0])])
    with pytest.raises(InputError, match=r"share no member, but .*0a.* is in two; lea"):
        conditioning(
            session, predictor, [one, Ensemble((*two.members[:1], *one.members[:1]))]
        )
    wide = [make_member(tmp_path / f"w{i}.safetensors", i, "mlp") for i in range(2)]
    with pytest.raises(
        InputError, match=r"the predictor's architecture, but .* has mlp"
    ):
        conditioning(session, predictor, [one, Ensemble(tuple(wide))])


def test_members_are_cut_in_order(pairs):
    zoo = Ensemble(tuple(m for ensemble in pairs(2) for m in ensemble.members))
    assert [e.members for e in disjoint(zoo, 2)] == [zoo.members[:2], zoo.members[2:]]
    assert [e.members for e in disjoint(zoo, 3)] == [zoo.members[:3]]
    assert len(disjoint(zoo, 1, 2)) == 2
    assert disjoint(zoo, 5) == []


@pytest.mark.parametrize(
    ("held_out", "teachers", "counts"),
    [
        (4, (2, 2), (2, 0)),
        (2, (1, 2), (1, 2)),
        (1, (2, 2), (0, 2)),
        (4, (1, 1), (4, 0)),
        (2, (4, 4), None),
    ],
)
def test_a_new_predictor_is_measured_on_members_held_out_first(
    session, pairs, held_out, teachers, counts
):
    zoo = Ensemble(tuple(m for ensemble in pairs(3) for m in ensemble.members))
    record = {"teachers": list(teachers), "members": len(zoo) - held_out}
    predictor = predictor_of(session, zoo)
    info = predictor.info.model_copy(update={"training": record})
    predictor = Predictor(predictor.network, info)
    training = with_conditioning(session, predictor, zoo).info.training
    if counts is None:
        assert training == record
        return
    assert training["conditioning"]["ensembles"] == sum(counts)
    size = max(teachers[0], min(2, teachers[1]))
    held, known = counts
    expected = {"size": size, "held_out": held, "training": known}
    assert training["conditioning_ensembles"] == expected


def test_a_learnt_predictor_keeps_its_frame(session, pairs):
    zoo = Ensemble(tuple(m for ensemble in pairs(2) for m in ensemble.members))
    method = WeightFormerMethod(
        width=8, heads=1, depth=1, epochs=1, align="always", tune_epochs=0
    )
    learnt = learn_predictor(session, zoo, method, teachers=(2, 2), hold_out=1)
    assert learnt.predictor.frame is not None


def test_the_best_step_is_no_farther_than_the_reference(session, pairs):
    (ensemble,) = pairs(1)
    wild = predictor_of(session, ensemble, awake=True, reference="mean", gain=9.0)
    step, student, note = best_step(session, ensemble, wild)
    assert step == 0
    assert "step 0 from the reference" in note
    reference = predicted_student(session, ensemble, wild, step=0.0)
    got, want = student.network.state_dict(), reference.network.state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_learn_weightformer_says_and_records_it(
    pairs, capsys, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    zoo = " ".join(str(m.path) for ensemble in pairs(3) for m in ensemble.members)
    line = (
        f"{zoo} --data digits --limit-train 60 --teachers 2 2 --hold-out 2 --width 8 "
        f"--heads 1 --depth 1 --epochs 1 --quiet --out {tmp_path}/wf.safetensors"
    )
    learn_weightformer.run(line.split())
    said = " ".join(capsys.readouterr().out.split())
    record = load_predictor(tmp_path / "wf.safetensors").info.training
    assert f"Conditioning: {listening(record['conditioning'])}" in said
    assert "3 ensembles): 1 of held-out members and 2 of training members, 2 ea" in said


def test_a_report_without_others_says_what_was_found_when_it_was_learnt(
    tmp_path: Path, make_member: Callable[..., Member]
):
    folder = tmp_path / "zoo"
    folder.mkdir()
    for seed in range(6):
        make_member(folder / f"{seed}.safetensors", seed, NAME)
    file, run = tmp_path / "wf.safetensors", tmp_path / "run"
    words = "--data digits --limit-train 60 --device cpu --quiet --width 8 --depth 1"
    shape = "--heads 2 --epochs 0.5 --batch-size 16 --teachers 2 2 --hold-out 4"
    learn_weightformer.run(
        [str(folder), *words.split(), *shape.split(), "--out", str(file)]
    )
    learnt = load_predictor(file).info.training["conditioning"]
    two = [str(folder / f"{seed}.safetensors") for seed in range(2)]
    predict.run([*two, "--predictor", str(file), "--out", str(run), "--quiet"])
    (report,) = read_reports(run)
    assert report.conditioning == learnt
    assert any(note.startswith("when it was learnt, ") for note in report.notes)
