"""Every command does its work on tiny data."""

import html
import json
from pathlib import Path

import pytest
import torch
import yaml

from metaensemble.core.files import sha256_of
from metaensemble.report import Report, read_report
from metaensemble.report.table import escape_markdown
from metaensemble.teachers import load_member
from metaensemble.workflows.registry import METHODS
from metaensemble.workflows.teach import Knowledge
from tests.cli.conftest import RUN_FILES, files

DIGITS = "--data digits --limit-train 60 --quiet"
SMALL = {
    "auto": "--budget 300images",
    "kd": "--epochs 2",
    "weightformer": "--epochs 2 --width 8 --heads 1 --depth 1 --tune-epochs 1",
}
"""Flags that keep a trained method short."""
GIVEN = [name for name, kind in METHODS.items() if kind.fewest_members > 0]
"""Methods that start from members."""


def test_teach_writes_members_that_differ_in_their_seed(cli, digits):
    done = cli(
        f"teach {DIGITS} --architecture mlp,width=8 --members 2 --epochs 1 --seed 7 "
        "--out zoo"
    )
    assert done.status == 0
    assert "2 members in zoo" in done.out
    names = ["member-0007.safetensors", "member-0008.safetensors"]
    assert files(Path("zoo")) == {*names, "config.yaml", "log.jsonl"}
    members = [load_member(Path("zoo") / name, data=digits) for name in names]
    assert [m.info.training["seed"] for m in members] == [7, 8]
    assert members[0].info.architecture == "mlp,width=8"
    assert 0 <= members[0].info.metrics["validation"]["accuracy"] <= 1
    assert members[0].info.start != members[1].info.start
    assert yaml.safe_load(Path("zoo/config.yaml").read_text())["members"] == 2


def test_a_seed_makes_the_same_member_alone_and_in_company(cli):
    teach = f"teach {DIGITS} --architecture mlp,width=8 --epochs 1"
    assert cli(f"{teach} --members 2 --out two").status == 0
    assert cli(f"{teach} --members 1 --seed 1 --out one").status == 0
    name = "member-0001.safetensors"
    assert sha256_of(Path("two") / name) == sha256_of(Path("one") / name)


def test_teach_from_a_start(cli, zoo, digits):
    done = cli(
        f"teach {DIGITS} --architecture mlp,width=8 --members 2 --epochs 1 --out kin "
        f"--subset 0.5 --start {zoo / '0.safetensors'}"
    )
    assert done.status == 0
    one, two = (load_member(Path(f"kin/member-000{i}.safetensors")) for i in (0, 1))
    assert one.info.start == two.info.start is not None
    assert one.info.training["images"] == 27
    assert one.sha256 != two.sha256


def test_teach_members_that_know_different_things(cli, digits):
    done = cli(
        f"teach {DIGITS} --architecture mlp,width=8 --members 2 --epochs 1 --out zoo "
        "--classes-each 3 --label-noise 0.2"
    )
    assert done.status == 0
    records = [
        load_member(Path(f"zoo/member-000{i}.safetensors"), data=digits).info.training
        for i in (0, 1)
    ]
    for seed, record in enumerate(records):
        seen = Knowledge(classes_each=3).of(digits.train, digits.num_classes, seed)
        assert record["images"] == len(seen) < len(digits.train)
        assert record["subset"] == 1
        assert record["classes_each"] == 3
        assert record["label_noise"] == 0.2


@pytest.mark.parametrize("name", GIVEN)
def test_fuse_writes_a_run(cli, zoo, digits, name):
    members = f"{zoo / '0.safetensors'} {zoo / '1.safetensors'}"
    done = cli(
        f"fuse {members} {DIGITS} --method {name} {SMALL.get(name, '')} --out run"
    )
    assert done.status == 0
    assert done.err == ""
    assert "Written to run" in done.out
    assert files(Path("run")) == RUN_FILES
    assert files(Path()) == {"run"}
    student = load_member(Path("run/student.safetensors"), data=digits)
    report = read_report(Path("run"))
    assert report.method["name"] == name
    assert report.student.sha256 == student.sha256
    assert [t.path for t in report.teachers] == members.split()
    assert report.command.startswith("metaensemble fuse ")
    assert student.info.training["teachers"] == [t.sha256 for t in report.teachers]
    assert report.verdict
    assert report.verdict in " ".join(done.out.split())
    assert (report.stage == "tuned") == (name == "weightformer")
    for line in Path("run/log.jsonl").read_text().splitlines():
        assert "event" in json.loads(line)
    assert escape_markdown(report.verdict) in Path("run/card.md").read_text()


@pytest.mark.parametrize("name", GIVEN)
def test_a_config_fed_back_repeats_the_run(cli, zoo, name):
    line = f"fuse {zoo} {DIGITS} --method {name} {SMALL.get(name, '')} --seed 3"
    assert cli(f"{line} --out run").status == 0
    assert cli("fuse --config run/config.yaml --out again").status == 0
    again = Path("again/student.safetensors").read_bytes()
    assert again == Path("run/student.safetensors").read_bytes()
    configs = [
        yaml.safe_load(Path(f"{r}/config.yaml").read_text()) for r in ("run", "again")
    ]
    assert configs[0] == {**configs[1], "out": "run"}


def test_a_seed_other_than_that_gives_another_student(cli, zoo):
    line = f"fuse {zoo} {DIGITS} --method kd --start scratch --epochs 1"
    for seed in (0, 1):
        assert cli(f"{line} --seed {seed} --out run{seed}").status == 0
    one, two = (Path(f"run{i}/student.safetensors") for i in (0, 1))
    assert sha256_of(one) != sha256_of(two)


def test_the_command_line_overrides_the_config(cli, zoo):
    Path("kd.yaml").write_text(
        "data: digits\nlimit_train: 60\nquiet: true\n"
        "method: {name: kd, epochs: 1, temperature: 4}\n"
    )
    done = cli(f"fuse {zoo} --config kd.yaml --temperature 3 --out run")
    assert done.status == 0
    report = read_report(Path("run"))
    assert report.method["temperature"] == 3
    assert report.method["epochs"] == 1
    assert len(report.teachers) == 5


def test_another_method_than_the_configs_starts_from_its_defaults(cli, zoo):
    Path("kd.yaml").write_text(
        "data: digits\nlimit_train: 60\nquiet: true\nmethod: {name: kd, epochs: 1}\n"
    )
    assert cli(f"fuse {zoo} --config kd.yaml --method soup --out run").status == 0
    assert read_report(Path("run")).method == {"name": "soup"}


def test_fuse_says_what_to_expect_before_it_starts(cli, zoo):
    members = " ".join(str(zoo / f"{seed}.safetensors") for seed in (1, 2, 3, 4))
    line = f"fuse {members} {DIGITS.removesuffix(' --quiet')} --method soup --out run"
    done = cli(line)
    assert done.status == 0
    weights, outputs, verdict, *_ = done.err.splitlines()
    assert weights.startswith("4 members of one start (their records say); cosine")
    assert "validation images" in outputs
    report = read_report(Path("run"))
    assert report.diagnosis is not None
    assert report.diagnosis.verdict == verdict
    assert report.regime == "one-start"
    logged = Path("run/log.jsonl").read_text().splitlines()
    events = {event["event"]: event for event in map(json.loads, logged)}
    assert events["diagnosis"]["verdict"] == verdict
    assert events["diagnosis"]["warning"] is None
    assert escape_markdown(verdict) in Path("run/card.md").read_text()
    page = Path("run/page.html").read_text()
    assert html.escape(verdict) in page
    assert "Accuracy and NLL between two members" in page
    assert cli(f"{line} --overwrite --quiet").err == ""


@pytest.fixture
def bent(template_member) -> str:
    """A good member, and one whose mean with it is as wrong as can be."""
    template_member(Path("good.safetensors"))
    template_member(Path("bad.safetensors"), -3)
    return "good.safetensors bad.safetensors"


def test_another_student_than_the_best_member_is_told_in_the_first_line(cli, bent):
    line = f"fuse {bent} {DIGITS} --method soup"
    assert cli(f"{line} --out run").status == 0
    report = read_report(Path("run"))
    against = report.against_best
    assert against is not None
    assert against.worse
    assert not against.fallback
    assert report.verdict is not None
    assert report.verdict.startswith("soup (")
    assert "is below the best member, good.safetensors (" in report.verdict
    page = Path("run/page.html").read_text()
    assert f"<h1>{html.escape(report.verdict)}</h1>" in page


def test_a_fallback_ships_the_best_member(cli, bent, digits):
    line = f"fuse {bent} {DIGITS} --method soup --fallback best-member --out run"
    done = cli(line)
    assert done.status == 0
    assert "the student is that member instead" in " ".join(done.out.split())
    assert files(Path("run")) == RUN_FILES
    student = load_member(Path("run/student.safetensors"), data=digits)
    best = load_member(Path("good.safetensors"), data=digits)
    state, given = student.state(), best.state()
    assert all(torch.equal(state[name], given[name]) for name in given)
    assert student.info.training["method"] == {"name": "soup"}
    assert student.info.training["fallback"] == best.sha256
    report = read_report(Path("run"))
    assert report.method == {"name": "soup"}
    assert report.fell_back
    assert report.student.sha256 == student.sha256
    own = next(t for t in report.teachers if t.path == "good.safetensors")
    assert report.student.test == own.test
    card = Path("run/card.md").read_text()
    assert "instead of soup" in card
    assert "this is that member, good.safetensors, as it was" in " ".join(card.split())


def test_a_fallback_that_is_not_needed_changes_nothing(cli, zoo):
    line = f"fuse {zoo} {DIGITS} --method best_member"
    assert cli(f"{line} --fallback best-member --out one").status == 0
    assert cli(f"{line} --out other").status == 0
    hashes = {sha256_of(Path(run) / "student.safetensors") for run in ("one", "other")}
    assert len(hashes) == 1
    assert read_report(Path("one")).against_best is None


def test_fuse_into_another_architecture(cli, zoo, digits):
    done = cli(
        f"fuse {zoo} {DIGITS} --method kd --epochs 1 --student mlp,width=4 --out run"
    )
    assert done.status == 0
    student = load_member(Path("run/student.safetensors"), data=digits)
    assert student.info.architecture == "mlp,width=4"


def test_bare_state_dicts_come_with_their_architecture(cli, zoo, digits):
    for seed in (0, 1):
        state = load_member(zoo / f"{seed}.safetensors").state()
        torch.save({"state_dict": state}, f"{seed}.pt")
    done = cli(
        f"fuse 0.pt 1.pt --architecture mlp,width=8 {DIGITS} --method soup --out run"
    )
    assert done.status == 0
    assert load_member(Path("run/student.safetensors"), data=digits)


def test_unlabelled_images_are_distilled_on(cli, zoo):
    line = f"fuse {zoo} {DIGITS} --method kd --epochs 1 --batch-size 30"
    assert cli(f"{line} --unlabelled --out more").status == 0
    assert cli(f"{line} --out fewer").status == 0
    more, fewer = (read_report(Path(run)).cost for run in ("more", "fewer"))
    assert more.train_images == (54 + 840) // 30 * 30
    assert fewer.train_images == 30


def test_methods_lists_the_registry(cli):
    done = cli("methods --architectures")
    assert done.status == 0
    assert all(name in done.out for name in METHODS)
    assert "resnet20" in done.out


def test_overwrite_replaces_a_run(cli, zoo):
    line = f"fuse {zoo} {DIGITS} --out run"
    assert cli(f"{line} --method soup").status == 0
    assert cli(f"{line} --method best_member --overwrite").status == 0
    assert read_report(Path("run")).method["name"] == "best_member"
    assert files(Path()) == {"run"}


def test_a_reports_keys_are_those_of_the_schema(cli, zoo):
    assert cli(f"fuse {zoo} {DIGITS} --method kd --epochs 1 --out run").status == 0
    value = json.loads(Path("run/report.json").read_text())
    fixed = {
        "schema",
        "command",
        "method",
        "seed",
        "data",
        "teachers",
        "mean_teacher",
        "best_teacher",
        "ensemble",
        "student",
        "headroom",
        "fidelity",
        "cost",
        "environment",
    }
    optional = {"regime", "verdict", "notes", "reliability", "history"}
    optional |= {"diagnosis", "against_best", "intervals", "per_class"}
    assert set(value) == fixed | optional
    assert set(value["cost"]) == {
        "parameters",
        "macs",
        "train_seconds",
        "train_images",
        "teacher_images",
        "latency_ms",
        "ensemble_latency_ms",
        "peak_memory_mb",
    }
    measures = {"accuracy", "top5", "nll", "brier", "ece", "count"}
    for key in ("mean_teacher", "best_teacher", "ensemble"):
        assert set(value[key]) == {"test"}
        assert set(value[key]["test"]) == measures
    assert set(value["student"]) == {"test", "validation", "sha256"}
    assert set(value["student"]["validation"]) == measures
    for teacher in value["teachers"]:
        assert set(teacher) == {"path", "sha256", "architecture", "test"}
    assert Report.model_validate(value).cost.teacher_images == 5 * (54 + 6)
