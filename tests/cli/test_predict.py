"""Predictors, learnt and used: what is written and said."""

from pathlib import Path

from metaensemble.core.files import sha256_of
from metaensemble.core.states import load_state, save_state
from metaensemble.report import read_report
from metaensemble.teachers import load_member
from metaensemble.weightformer import load_predictor
from tests.cli.conftest import RUN_FILES, files


def test_learn_weightformer_writes_a_predictor_and_its_log(predictor, zoo):
    learnt = load_predictor(predictor)
    assert learnt.info.architecture == "mlp,width=8"
    assert len(learnt.info.trained_on) == 3
    assert len(learnt.info.training["held_out"]) == 2
    beside = predictor.with_name("wf-training")
    assert files(beside) == {"config.yaml", "log.jsonl"}


def test_a_predictor_is_the_same_when_learnt_again(cli, predictor, zoo):
    config = predictor.with_name("wf-training") / "config.yaml"
    done = cli(f"learn-weightformer --config {config} --out again.safetensors")
    assert done.status == 0
    assert "the student of unseen members has" in done.out
    assert sha256_of(Path("again.safetensors")) == sha256_of(predictor)


def members_of(zoo: Path) -> str:
    return f"{zoo / '3.safetensors'} {zoo / '4.safetensors'}"


def test_predict_uses_the_predictors_data(cli, predictor, zoo):
    done = cli(f"predict {members_of(zoo)} --predictor {predictor} --out run --quiet")
    assert done.status == 0
    assert files(Path("run")) == RUN_FILES
    report = read_report(Path("run"))
    assert report.stage == "predicted"
    assert report.data.train == 54
    assert any(note.startswith("predicted in ") for note in report.notes)
    assert any("saw 3.safetensors, 4.safetensors" in note for note in report.notes)
    assert report.cost.train_images == 0


def test_predict_with_data_and_tuning(cli, predictor, zoo):
    line = f"predict {members_of(zoo)} --predictor {predictor} --quiet"
    done = cli(f"{line} --data digits --limit-train 90 --tune-epochs 1 --out tuned")
    assert done.status == 0
    assert files(Path("tuned")) == RUN_FILES
    report = read_report(Path("tuned"))
    assert report.stage == "tuned"
    assert report.data.train == 81
    assert report.method["tune_epochs"] == 1
    assert report.cost.train_images == 81


def test_predict_without_any_data_writes_the_student_alone(cli, predictor, zoo):
    known = load_predictor(predictor)
    training = {**known.info.training, "data_options": None}
    info = known.info.model_copy(update={"training": training})
    save_state(Path("wf.safetensors"), load_state(predictor)[0], info.model_dump())
    done = cli(f"predict {members_of(zoo)} --predictor wf.safetensors --out run")
    assert done.status == 0
    assert "unmeasured: add --data" in done.out
    assert files(Path("run")) == {"student.safetensors", "config.yaml"}
    assert load_member(Path("run/student.safetensors"))


def test_one_teacher_is_enough_to_predict(cli, predictor, zoo):
    done = cli(
        f"predict {zoo / '0.safetensors'} --predictor {predictor} --out run --quiet"
    )
    assert done.status == 0
