"""Generators that need more than weights: merges, the frame, images."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from metaensemble.cli import learn_weightformer, predict
from metaensemble.core.errors import InputError
from metaensemble.core.states import load_state
from metaensemble.engine import RunLog, evaluate
from metaensemble.merging import Merger
from metaensemble.methods import (
    Sources,
    WeightFormerLearner,
    WeightFormerMethod,
    reading_for,
)
from metaensemble.metrics import kl_to
from metaensemble.models import init_model
from metaensemble.report import read_reports
from metaensemble.teachers import Ensemble, Member, load_ensemble
from metaensemble.weightformer import load_predictor
from metaensemble.workflows.learning import learn_predictor
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.predicting import (
    refined_student,
    sources_of,
    weightformer_student,
)
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.students import Student, merge_student, state_of

NAME = "mlp,width=8"
SMALL = {"width": 8, "heads": 2, "depth": 1, "epochs": 0.1, "batch_size": 16}


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Five members of one start."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    first = make_member(tmp_path / "start.safetensors", 99, NAME)
    for seed in range(5):
        make_member(folder / f"{seed}.safetensors", seed, NAME, first)
    return load_ensemble([folder])


@pytest.mark.parametrize("reference", ["learned_soup", "regression_merge"])
def test_before_training_the_student_is_the_merge(
    session: Session, zoo: Ensemble, reference: str
):
    method = WeightFormerMethod.model_validate(
        {**SMALL, "reference": reference, "learning_rate": 1e-30, "tune_epochs": 0}
    )
    predicted, tuned = weightformer_student(session, zoo, method)
    assert tuned is None
    merger = make_method(reference)
    assert isinstance(merger, Merger)
    merged = state_of(merge_student(session, zoo, merger).network)
    for name, tensor in state_of(predicted.network).items():
        assert torch.allclose(tensor, merged[name], atol=1e-5)


def test_the_frame_as_reference_is_the_same_for_all(session: Session, zoo: Ensemble):
    method = WeightFormerMethod.model_validate(
        {**SMALL, "reference": "frame", "learning_rate": 1e-30}
    )
    learnt = learn_predictor(session, zoo, method, teachers=(1, 2), hold_out=2)
    predictor = learnt.predictor
    assert predictor.frame is not None
    for chosen in ([0, 1], [3, 4], [2]):
        reading = reading_for(predictor, zoo.subset(chosen))
        state = predictor.predict(reading.states, reading.base)
        for name in predictor.info.spec.shapes:
            assert torch.allclose(state[name], predictor.frame[name], atol=1e-6)


def test_sets_of_teachers_are_prepared_once(session: Session, zoo: Ensemble):
    asked = []
    sources = sources_of(session)

    def merge(ensemble: Ensemble, name: str):
        asked.append((name, len(ensemble)))
        return sources.merge(ensemble, name)

    method = WeightFormerMethod.model_validate(
        {**SMALL, "reference": "learned_soup", "pool": 3}
    )
    info = zoo.info
    learner = WeightFormerLearner(
        method,
        init_model(info.architecture, len(info.classes), info.input_shape, 0),
        zoo.subset(range(3)),
        zoo.subset([3, 4]),
        draw=(2, 3),
        sources=Sources(merge, sources.images),
    )
    assert len(asked) == 3 + 1  # the pool, and those whom validation predicts for
    seen = {tuple(learner.reading(step)[0]) for step in range(50)}
    assert len(seen) <= 3
    chosen, reading = learner.reading(7)
    assert len(reading.states) == len(chosen)
    assert reading.base is not None
    again, _ = learner.reading(7)
    assert again == chosen
    assert len(asked) == 3 + 1


def test_data_tokens_through_the_commands(tmp_path: Path, zoo: Ensemble):
    words = ["--data", "digits", "--limit-train", "60", "--device", "cpu", "--quiet"]
    file, run = tmp_path / "wf.safetensors", tmp_path / "run"
    shape = "--width 8 --heads 2 --depth 1 --epochs 0.5 --batch-size 16 --pool 2"
    learn_weightformer.run(
        [
            *[str(member.path) for member in zoo.members],
            *words,
            *shape.split(),
            *("--data-tokens", "12", "--teachers", "2", "2", "--out", str(file)),
        ]
    )
    predictor = load_predictor(file)
    assert predictor.info.config.data_tokens == 12
    two = [str(member.path) for member in zoo.members[:2]]
    call = [*two, "--predictor", str(file), "--out", str(run), "--quiet"]
    predict.run([*call, "--device", "cpu"])
    (report,) = read_reports(run)
    assert report.method["data_tokens"] == 12
    assert load_state(run / "student.safetensors")[0]
    ensemble = load_ensemble(two)
    with pytest.raises(InputError, match="must be given images"):
        predictor.predict(reading_for(predictor, ensemble).states)


def test_silent_members_lend_weights_but_no_outputs(session: Session, zoo: Ensemble):
    split = session.data.validation
    three = zoo.subset([0, 1, 2])
    with_silent = Ensemble(zoo.members[:4], zoo.average, (3,))
    logits = session.cache.ensemble_logits(with_silent, split)
    target = three.log_probs(logits[:3])
    assert torch.equal(with_silent.log_probs(logits), target)
    turned = with_silent.subset([3, 0, 2])
    assert turned.silent == (0,)
    assert torch.equal(
        turned.log_probs(logits[[3, 0, 2]]), zoo.log_probs(logits[[0, 2]])
    )


@pytest.mark.parametrize("refinement", ["learned_soup", "regression_merge"])
def test_a_refined_student_is_nearer_to_its_ensemble(
    session: Session, zoo: Ensemble, refinement: Literal["learned_soup"]
):
    stranger = Student(init_model(NAME, 10, zoo.info.input_shape, 77), zoo.info)
    refined = refined_student(session, zoo, stranger, refinement)
    split = session.data.validation
    target = zoo.log_probs(session.cache.ensemble_logits(zoo, split))
    before, after = (
        kl_to(target, evaluate(s.network, zoo.info.normalization, split).log_probs)
        for s in (stranger, refined)
    )
    assert after < before
    assert refined_student(session, zoo, stranger, "none") is stranger
