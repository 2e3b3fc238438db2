"""What `metaensemble predict` says of teachers that do not fit, and of others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.cli import predict
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.core.states import load_state, save_state
from metaensemble.methods import WeightFormerMethod
from metaensemble.models import build
from metaensemble.report import read_report
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

    def run(*paths: Path, flags: str = "", **fields: object) -> Path:
        method = WeightFormerMethod.model_validate(
            {"width": 8, "heads": 1, "depth": 1, "max_teachers": 3, **fields}
        )
        student = build(NAME, len(zoo.info.classes), zoo.info.input_shape)
        with seeded("generator"):
            learner = method.learner(student, zoo.subset([0, 1]))
        save_predictor(tmp_path / "wf.safetensors", learner.predictor())
        out = tmp_path / "run"
        words = [str(path) for path in paths]
        words += ["--predictor", str(tmp_path / "wf.safetensors"), "--out", str(out)]
        predict.run([*words, "--quiet", "--overwrite", *flags.split()])
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


DATA = "--data digits --limit-train 60"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))


def test_a_teacher_added_later_is_read_by_the_same_predictor(
    zoo: Ensemble, predicted: Callable[..., Path]
):
    paths = [member.path for member in zoo.members]
    two = load_state(predicted(*paths[:2], reference="mean"))[0]
    three = load_state(predicted(*paths[:3], reference="mean"))[0]
    assert three.keys() == two.keys()
    assert not torch.equal(three["fc.weight"], two["fc.weight"])
    expected = torch.stack([m.state()["fc.weight"] for m in zoo.members[:3]]).mean(0)
    assert torch.allclose(three["fc.weight"], expected, atol=1e-6)


def test_a_step_goes_part_of_the_way(zoo: Ensemble, predicted: Callable[..., Path]):
    paths = [member.path for member in zoo.members[2:]]
    weights = [
        load_state(predicted(*paths, flags=f"--step {step}", head="direct"))[0]
        for step in ("0", "0.5", "1")
    ]
    start, half, end = (state["fc.weight"] for state in weights)
    assert not torch.equal(start, end)
    assert torch.allclose(half, (start + end) / 2, atol=1e-6)


def test_a_step_that_was_asked_is_said(
    capsys: pytest.CaptureFixture[str], zoo: Ensemble, predicted: Callable[..., Path]
):
    predicted(zoo.members[2].path, flags="--step 0.5")
    said = " ".join(capsys.readouterr().out.split())
    assert "step 0.5 from the reference (0) to the prediction (1) was asked" in said


def test_auto_takes_the_step_nearest_to_the_ensemble(
    zoo: Ensemble, predicted: Callable[..., Path]
):
    paths = [member.path for member in zoo.members[2:]]
    run = predicted(*paths, flags=f"{DATA} --step auto", head="direct").parent
    (note,) = (n for n in read_report(run).notes if "was chosen on validation" in n)
    for step in ("0", "0.25", "0.5", "0.75", "1"):
        assert f" at {step}" in note


@pytest.mark.parametrize(("images", "seen"), [(108, 108), (1, 54)])
def test_tuning_by_images_counts_them(
    zoo: Ensemble, predicted: Callable[..., Path], images: int, seen: int
):
    run = predicted(zoo.members[2].path, flags=f"{DATA} --tune-images {images}").parent
    report = read_report(run)
    assert report.stage == "tuned"
    assert report.cost.train_images == seen
    assert report.method["tune_epochs"] == images / 54


def test_other_members_tell_whether_it_listens(
    capsys: pytest.CaptureFixture[str],
    zoo: Ensemble,
    predicted: Callable[..., Path],
):
    one, *others = (str(member.path) for member in zoo.members)
    run = predicted(Path(one), flags=f"{DATA} --others {' '.join(others)}").parent
    report = read_report(run)
    assert report.conditioning is not None
    assert report.conditioning["ensembles"] == 4
    assert report.conditioning["reading_gain"] == 0  # a sleeping generator
    said = " ".join(capsys.readouterr().out.split())
    (line,) = (n for n in report.notes if "listen to its teachers" in n)
    assert "KL to its own ensemble 0.0000, to others 0.2" in line
    assert f"Conditioning: {line}" in said
    for name in ("card.md", "page.html"):
        assert "listen to its teachers" in (run / name).read_text()


def test_without_others_there_is_no_conditioning(
    zoo: Ensemble, predicted: Callable[..., Path]
):
    run = predicted(zoo.members[2].path, flags=DATA).parent
    assert read_report(run).conditioning is None


def test_others_that_are_teachers_too_few_or_unfit(
    tmp_path: Path,
    make_member: Callable[..., Member],
    zoo: Ensemble,
    predicted: Callable[..., Path],
):
    paths = [member.path for member in zoo.members]
    with pytest.raises(InputError, match=r"than the teachers, but .*1\.saf.* is teach"):
        predicted(*paths[:2], flags=f"{DATA} --others {paths[1]} {paths[2]}")
    with pytest.raises(InputError, match=r"at least as many members .* 1 to 2; name m"):
        predicted(*paths[:2], flags=f"{DATA} --others {paths[2]}")
    wide = make_member(tmp_path / "wide.safetensors", 9, "mlp,width=16")
    with pytest.raises(InputError, match=r"the predictor's architecture, but .*wide"):
        predicted(paths[0], flags=f"{DATA} --others {wide.path}")
    assert not (tmp_path / "run").exists()
