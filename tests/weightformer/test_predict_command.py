"""What `metaensemble predict` says of teachers that do not fit, and of others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.cli import predict
from metaensemble.core.errors import InputError
from metaensemble.core.states import load_state, save_state
from metaensemble.methods import WeightFormerMethod
from metaensemble.models import build
from metaensemble.teachers import Ensemble, Member, load_ensemble
from metaensemble.weightformer import save_predictor

NAME = "mlp,width=8"


@pytest.fixture
def zoo(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    folder = tmp_path / "zoo"
    folder.mkdir()
    for seed in range(4):
        make_member(folder / f"{seed}.safetensors", seed, NAME)
    return load_ensemble([folder])


@pytest.fixture
def predicted(tmp_path: Path, zoo: Ensemble) -> Callable[..., Path]:
    """Predict for files by a predictor of the zoo's first two; return the student."""

    def run(*paths: Path, **fields: object) -> Path:
        method = WeightFormerMethod.model_validate(
            {"width": 8, "heads": 1, "depth": 1, "max_teachers": 3, **fields}
        )
        student = build(NAME, len(zoo.info.classes), zoo.info.input_shape)
        learner = method.learner(student, zoo.subset([0, 1]))
        save_predictor(tmp_path / "wf.safetensors", learner.predictor())
        out = tmp_path / "run"
        words = [str(path) for path in paths]
        words += ["--predictor", str(tmp_path / "wf.safetensors"), "--out", str(out)]
        predict.run([*words, "--quiet"])
        return out / "student.safetensors"

    return run


def test_its_own_training_members_are_read_but_said(
    capsys: pytest.CaptureFixture[str], zoo: Ensemble, predicted: Callable[..., Path]
):
    paths = [member.path for member in zoo.members]
    assert predicted(*paths[1:4]).exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "the predictor's training saw 1.safetensors)" in said


def test_strangers_are_read_without_a_word(
    capsys: pytest.CaptureFixture[str], zoo: Ensemble, predicted: Callable[..., Path]
):
    student = predicted(zoo.members[2].path, zoo.members[3].path)
    said = capsys.readouterr().out
    assert "predicted in" in said
    assert "training saw" not in said
    first = zoo.members[2].state()  # a sleeping generator, strangers: the first
    assert torch.equal(load_state(student)[0]["fc.weight"], first["fc.weight"])


def test_an_aligned_predictor_predicts(zoo: Ensemble, predicted: Callable[..., Path]):
    student = predicted(
        zoo.members[2].path, zoo.members[3].path, reference="aligned_mean"
    )
    assert load_state(student)[0].keys() == zoo.members[0].state().keys()


def test_too_many_teachers(zoo: Ensemble, predicted: Callable[..., Path]):
    with pytest.raises(InputError, match="reads 1 to 3 teachers, but got 4; leave"):
        predicted(*(member.path for member in zoo.members))


def test_teachers_with_nan(
    tmp_path: Path, zoo: Ensemble, predicted: Callable[..., Path]
):
    state, metadata = load_state(zoo.members[2].path)
    assert metadata is not None
    state["fc.weight"][0, 0] = torch.nan
    broken = tmp_path / "broken.safetensors"
    save_state(broken, state, metadata)
    with pytest.raises(InputError, match=r"broken.safetensors has NaN or infinity in"):
        predicted(zoo.members[3].path, broken)


def test_a_teacher_cut_short(zoo: Ensemble, predicted: Callable[..., Path]):
    path = zoo.members[3].path
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="must be a whole safetensors file"):
        predicted(zoo.members[2].path, path)


def test_teachers_of_other_classes(
    tmp_path: Path, zoo: Ensemble, predicted: Callable[..., Path]
):
    state, metadata = load_state(zoo.members[2].path)
    assert metadata is not None
    other = tmp_path / "other.safetensors"
    classes = [f"c{i}" for i in range(10)]
    save_state(other, state, {**metadata, "classes": classes})
    with pytest.raises(
        InputError, match=r"must have the predictor's classes, but .*c0"
    ):
        predicted(other)


def test_teachers_of_another_architecture(
    tmp_path: Path, make_member: Callable[..., Member], predicted: Callable[..., Path]
):
    wide = make_member(tmp_path / "wide.safetensors", 9, "mlp,width=16")
    message = "the predictor's architecture, but .*wide.safetensors has mlp,width=16"
    with pytest.raises(InputError, match=message):
        predicted(wide.path)
