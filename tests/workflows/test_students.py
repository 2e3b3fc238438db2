from pathlib import Path
from typing import get_args

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog
from metaensemble.merging import Merger
from metaensemble.methods import KD, WeightFormerMethod
from metaensemble.methods.distillation import Start
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.predicting import tune_student, weightformer_student
from metaensemble.workflows.registry import METHODS
from metaensemble.workflows.students import distil_student, distillation_images

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


def test_a_student_starts_as_what_a_merger_makes(session, ensemble):
    method = KD(epochs=0.1, batch_size=54, learning_rate=1e-12, start="soup")
    student = distil_student(session, ensemble, method)
    states = [member.state() for member in ensemble.members]
    for name, tensor in student.network.state_dict().items():
        mean = torch.stack([state[name] for state in states]).mean(0)
        assert torch.allclose(tensor, mean, atol=1e-6)


@pytest.fixture
def widths(make_member, tmp_path: Path) -> Ensemble:
    return Ensemble(
        tuple(
            make_member(tmp_path / f"w{width}.safetensors", width, f"mlp,width={width}")
            for width in (6, 8)
        )
    )


def test_a_student_has_the_architecture_that_it_starts_with(session, widths):
    method = KD(epochs=0.1, batch_size=54, start="ot_fusion")
    student = distil_student(session, widths, method)
    width = student.network.state_dict()["fc.weight"].shape[1]
    assert student.info.architecture == f"mlp,width={width}"
    (note,) = student.notes
    assert "its share" in note
    same = distil_student(session, widths, method, student.info.architecture)
    assert same.info == student.info


def test_a_start_of_another_architecture_is_refused(session, widths):
    method = KD(epochs=0.1, batch_size=54, start="ot_fusion")
    with pytest.raises(
        InputError,
        match=r"--start ot_fusion makes mlp,width=\d .* --student is mlp,width=5; cho",
    ):
        distil_student(session, widths, method, "mlp,width=5")
    with pytest.raises(InputError, match="must share one architecture"):
        distil_student(session, widths, method.model_copy(update={"start": "soup"}))


def test_the_starts_are_the_mergers_of_the_registry():
    mergers = {name for name, kind in METHODS.items() if issubclass(kind, Merger)}
    assert set(get_args(Start)) == {"scratch", *mergers}
