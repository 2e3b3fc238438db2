from pathlib import Path

import pytest
import torch

from metaensemble.engine import RunLog
from metaensemble.methods import KD, WeightFormerMethod
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.students import (
    distil_student,
    distillation_images,
    tune_student,
    weightformer_student,
)

TINY = WeightFormerMethod(
    width=8, heads=1, depth=1, epochs=1, batch_size=54, head="direct"
)


@pytest.fixture
def session(digits, tmp_path: Path) -> Session:
    options = RunOptions(device="cpu", cache=tmp_path / "cache")
    return open_session(options, digits, None, RunLog(quiet=True))


@pytest.fixture
def ensemble(make_member, tmp_path: Path) -> Ensemble:
    first = make_member(tmp_path / "0.safetensors", 0)
    return Ensemble((first, make_member(tmp_path / "1.safetensors", 1, start=first)))


def test_labelled_and_unlabelled_images_are_distilled_on(session, digits):
    images = distillation_images(session)
    assert len(images) == 54 + 840
    assert torch.equal(images.labels[:54], digits.train.labels)
    assert images.labels[54:].unique().tolist() == [-1]


def test_a_student_starts_as_the_member_that_is_best_on_validation(session, ensemble):
    method = KD(epochs=0.1, batch_size=54, learning_rate=1e-12)
    student = distil_student(session, ensemble, method)
    states = [member.state() for member in ensemble.members]

    def near(state: dict[str, torch.Tensor]) -> bool:
        own = student.network.state_dict()
        return all(torch.allclose(own[n], state[n], atol=1e-6) for n in state)

    assert any(near(state) for state in states)
    scratch = method.model_copy(update={"start": "scratch"})
    student = distil_student(session, ensemble, scratch)
    assert not any(near(state) for state in states)


def test_the_seed_decides_the_generators_first_weights(session, ensemble):
    def written(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed())  # whatever was drawn before plays no part
        student, _ = weightformer_student(session.reseeded(seed), ensemble, TINY)
        return student.network.state_dict()

    one, again, other = written(0), written(0), written(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_tuning_adds_up_what_it_took(session, ensemble):
    method = TINY.model_copy(update={"tune_epochs": 2})
    predicted, tuned = weightformer_student(session, ensemble, method)
    assert predicted.stage == "predicted"
    assert tuned is not None
    assert tuned.stage == "tuned"
    assert tuned.train_images > predicted.train_images
    assert tuned.train_seconds > predicted.train_seconds
    assert tuned.teacher_images >= predicted.teacher_images


def test_no_epochs_of_tuning_are_none(session, ensemble):
    method = TINY.model_copy(update={"tune_epochs": 0})
    predicted, tuned = weightformer_student(session, ensemble, method)
    assert tuned is None
    assert tune_student(session, ensemble, predicted, method) is None
