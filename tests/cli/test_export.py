"""`export`, and `evaluate` of what it wrote."""

import json
from pathlib import Path

import pytest
import torch

from metaensemble.cli import main
from metaensemble.core.files import sha256_of
from metaensemble.core.states import load_state, save_state
from metaensemble.export import TOLERANCE
from metaensemble.teachers import load_member

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

DATA = "--data digits --limit-train 60 --quiet"


@pytest.fixture(scope="module")
def run(zoo, tmp_path_factory) -> Path:
    """A run of two members."""
    out = tmp_path_factory.mktemp("export") / "run"
    line = f"fuse {zoo / '0.safetensors'} {zoo / '1.safetensors'} {DATA}"
    assert main(f"{line} --method best_member --out {out}".split()) == 0
    return out


@pytest.fixture(scope="module")
def exported(run) -> Path:
    """It, as ONNX."""
    out = run.parent / "student.onnx"
    assert main(f"export {run} --format onnx --out {out}".split()) == 0
    return out


def figures(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".json").read_text())


def test_an_onnx_file_is_verified_on_the_runs_test_images(exported, run):
    found = figures(exported)
    assert found["schema"] == 1
    assert found["format"] == "onnx"
    assert found["file"] == "student.onnx"
    assert found["sha256"] == sha256_of(exported)
    assert found["student_sha256"] == sha256_of(run / "student.safetensors")
    assert found["runtime"].startswith("ONNX Runtime")
    seen = found["verified"]
    assert (seen["images"], seen["on"]) == (897, "test images of digits")
    assert seen["max_difference"] <= TOLERANCE
    assert seen["unequal_decisions"] == 0
    assert found["latency_ms"].keys() == {"torch", "onnx"}
    for ms in found["latency_ms"].values():
        assert ms.keys() == {"student", "ensemble", "ratio"}
        assert ms["ratio"] < 1
    assert found["latency_of"] == {"batch": 1, "members": 2, "threads": 1}
    assert found["notes"] == []


def test_evaluate_takes_it_beside_its_student(cli, exported, run):
    student = run / "student.safetensors"
    line = f"evaluate {student} {exported} {DATA} --json e.json"
    done = cli(line)
    assert done.status == 0, done
    one, two = json.loads(Path("e.json").read_text())["models"]
    assert one["architecture"] == two["architecture"]
    assert two["sha256"] == sha256_of(exported)
    for key, value in one["test"].items():
        assert two["test"][key] == pytest.approx(value, abs=1e-4)
    alone = cli(f"evaluate {exported} {DATA} --json one.json")
    assert alone.status == 0
    assert "ensemble" not in alone.out
    assert json.loads(Path("one.json").read_text())["models"] == [two]


def test_a_safetensors_export_is_a_member_again(cli, run, digits):
    done = cli(f"export {run} --format safetensors --out s.safetensors")
    assert done.status == 0, done
    assert "decisions are unequal" in done.out
    assert "One image in PyTorch, 1 thread: student" in done.out
    assert "ensemble of 2" in done.out
    assert "aim: at most 0.55" in done.out
    member = load_member(Path("s.safetensors"), data=digits)
    state = load_state(run / "student.safetensors")[0]
    assert all(torch.equal(member.state()[name], state[name]) for name in state)
    student = sha256_of(run / "student.safetensors")
    assert member.info.training["exported"] == student
    found = figures(Path("s.safetensors"))
    assert found["verified"]["max_difference"] < 1e-6
    assert found["latency_ms"].keys() == {"torch"}


def test_a_member_alone_is_verified_on_random_images_or_on_named_ones(cli, zoo):
    member = zoo / "0.safetensors"
    done = cli(f"export {member} --format safetensors --out a.safetensors")
    assert done.status == 0, done
    assert "on 256 random images" in done.out
    assert "Note: verified on random images; name real ones by --data" in done.out
    assert "ensemble" not in done.out
    line = f"export {member} --format safetensors --data digits --out b.safetensors"
    assert "on 897 test images of digits" in cli(line).out
    assert figures(Path("a.safetensors"))["latency_of"]["members"] == 0


def test_a_program_is_written_and_never_read_by_evaluate(cli, refused, run):
    done = cli(f"export {run} --format torch_export --out s.pt2")
    assert done.status == 0, done
    assert figures(Path("s.pt2"))["latency_ms"].keys() == {"torch", "torch_export"}
    refused(f"evaluate s.pt2 {DATA}", "is a torch.export program, which torch unpickl")


def test_members_that_went_away_are_said(cli, run, zoo):
    report = json.loads((run / "report.json").read_text())
    Path("run").mkdir()
    for name in ("student.safetensors", "config.yaml"):
        Path(f"run/{name}").write_bytes((run / name).read_bytes())
    report["teachers"][1]["path"] = "gone.safetensors"
    Path("run/report.json").write_text(json.dumps(report))
    Path("gone.safetensors").write_bytes((zoo / "2.safetensors").read_bytes())
    line = "export run --format safetensors --out s.safetensors"
    done = cli(line)
    assert done.status == 0
    assert "Note: the ensemble is not timed" in done.out
    assert "gone.safetensors is not there, or is another" in done.out
    Path("gone.safetensors").write_bytes((zoo / "1.safetensors").read_bytes())
    assert "ensemble of 2" in cli(f"{line} --overwrite").out
    Path("run/report.json").unlink()
    Path("run/config.yaml").write_text("data: [")
    out = cli(f"{line} --overwrite").out
    assert "the run's data cannot be read" in out
    assert "on 256 random images" in out
    assert "the ensemble is not timed: a run must hold a report" in out


def test_bare_state_dicts_come_with_architecture_and_data(cli, zoo):
    torch.save(load_state(zoo / "0.safetensors")[0], "bare.pt")
    line = "export bare.pt --format safetensors --architecture mlp,width=8"
    done = cli(f"{line} --normalization none --data digits --out s.safetensors")
    assert done.status == 0, done
    assert load_member(Path("s.safetensors")).info.normalization.mean == (0.0,)


def test_bad_input_is_one_sentence_and_writes_nothing(refused, run, zoo):
    to = "--format safetensors --out s.safetensors"
    refused(f"export nowhere {to}", "RUN must be a run folder or a member file, but no")
    refused(f"export {zoo} {to}", r"student.safetensors does not exist; make one with")
    refused(f"export {run} --out s.pt", "--out must end in .onnx for --format onnx")
    refused(f"export {run} {to} --data away", "data must be digits, .* does not exist")
    Path("s.safetensors.json").write_text("mine")
    refused(f"export {run} {to}", "must not exist yet, but s.safetensors.json does")
    inside = "--out run/student.safetensors --overwrite"
    Path("run").mkdir()
    for name in ("student.safetensors", "config.yaml", "report.json"):
        Path(f"run/{name}").write_bytes((run / name).read_bytes())
    for what in ("run", "run/student.safetensors"):
        refused(
            f"export {what} --format safetensors {inside}",
            "must not replace what is in use",
        )
    Path("run/student.safetensors").write_bytes(b"broken")
    refused("export run --out s.onnx", "must be a whole safetensors file")


def test_a_records_import_path_needs_consent(refused, run, zoo):
    state, record = load_state(run / "student.safetensors")
    assert record is not None
    record = {**record, "architecture": "evil:build"}
    save_state(Path("s.safetensors"), state, record)
    refused(
        "export s.safetensors --out s.onnx",
        "code named by a file is not run unless you name it, too",
    )
