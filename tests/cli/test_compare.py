"""``metaensemble compare``: from runs that fuse has written to one folder."""

import json
from pathlib import Path

import pytest
import yaml

from metaensemble.cli import main
from metaensemble.report import read_report, read_reports
from metaensemble.report.comparison import Comparison
from metaensemble.report.predictions import load_predictions

DIGITS = "--data digits --limit-train 60"


@pytest.fixture(scope="session")
def runs(zoo: Path, shared: Path) -> Path:
    """A folder of runs: kd with seeds 0 and 1, kd on a smaller student, soup."""
    folder = shared / "runs"
    cache = f"--cache {shared / 'cache'} --quiet"
    members = f"{zoo}/0.safetensors {zoo}/1.safetensors"
    kd = f"fuse {members} --method kd --start scratch --epochs 3 {DIGITS} {cache}"
    for line in (
        f"{kd} --out {folder}/kd0 --license mit",
        f"{kd} --out {folder}/kd1 --seed 1",
        f"{kd} --out {folder}/small --student mlp,width=4",
        f"fuse {members} --method soup {DIGITS} {cache} --out {folder}/soup",
        f"fuse {members} --method soup --data digits --limit-train 50 {cache} "
        f"--out {folder}/less",
    ):
        assert main(line.split()) == 0
    return folder


def copied(run: Path, out: Path, **changes: object) -> Path:
    """Copy a run's report, and change it."""
    value = json.loads((run / "report.json").read_text())
    out.mkdir()
    (out / "report.json").write_text(json.dumps(value | changes))
    return out


def test_a_run_keeps_what_its_page_and_card_need(runs: Path):
    report = read_report(runs / "kd0")
    kept = load_predictions(runs / "kd0" / "predictions" / "test.safetensors")
    assert kept.student_sha256 == report.student.sha256
    assert kept.data == "digits"
    for model, measured in (
        ("student", report.student.test),
        ("ensemble", report.ensemble.test),
        ("best_member", report.best_teacher.test),
    ):
        assert float(kept.right(model).mean()) == pytest.approx(measured.accuracy)
        assert float(kept.nll(model).mean()) == pytest.approx(measured.nll, rel=1e-5)
        assert float(kept.brier(model).mean()) == pytest.approx(
            measured.brier, rel=1e-5
        )
    assert report.intervals is not None
    assert sum(row.count for row in report.per_class) == report.data.test
    page = (runs / "kd0" / "page.html").read_text()
    assert page.count("<img") == 12
    assert "temperature: " in page  # config.yaml
    front = (runs / "kd0" / "card.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["license"] == "mit"


def test_runs_are_compared(cli, runs: Path):
    names = " ".join(str(runs / name) for name in ("kd0", "kd1", "small", "soup"))
    done = cli(f"compare {names} --out compared")
    assert (done.status, done.err) == (0, "")
    out = Path("compared")
    assert {p.name for p in out.iterdir()} == {
        "config.yaml",
        "page.html",
        "report.json",
        "table.md",
    }
    value = json.loads((out / "report.json").read_text())
    assert value["schema"] == 1
    assert [row["seed"] for row in value["rows"]] == [0, 1, 0, 0]
    found = Comparison.model_validate(value).differences
    methods = {one.method for one in found}
    assert methods == {"kd", "kd (student=mlp,width=4)", "soup"}
    assert all(one.over_images is not None for one in found)
    (kd,) = [
        one
        for one in found
        if (one.method, one.beside, one.metric) == ("kd", "ensemble", "accuracy")
    ]
    assert kd.over_runs is not None
    assert kd.over_images is not None
    assert kd.over_images.mean == pytest.approx(kd.over_runs.mean)
    table = (out / "table.md").read_text()
    assert "| kd (student=mlp,width=4) |" in table
    assert "Differences" in table
    assert "The lead of " in " ".join(done.out.split())
    page = (out / "page.html").read_text()
    assert "Differences between methods" in page
    assert "student=mlp,width=4" in page


def test_a_comparison_is_read_like_a_run(cli, runs: Path):
    assert cli(f"compare {runs}/kd0 {runs}/soup --out one").status == 0
    assert len(read_reports(Path("one"))) == 2
    done = cli(f"compare one {runs}/kd1 --out two")
    assert done.status == 0
    assert len(read_reports(Path("two"))) == 3
    assert "2 of 3 runs keep no predictions" in " ".join(done.out.split())


def test_one_run_and_old_runs_are_shown(cli, runs: Path):
    copied(runs / "kd0", Path("old"))
    done = cli("compare old --out alone")
    assert done.status == 0
    assert "1 of 1 runs keep no predictions" in " ".join(done.out.split())
    assert Path("alone/page.html").is_file()


def test_an_interrupted_or_repeated_comparison_is_the_same(cli, runs: Path):
    line = f"compare {runs}/kd0 {runs}/soup --out"
    pages = []
    for name in ("one", "two"):
        assert cli(f"{line} {name}").status == 0
        pages.append(Path(name, "report.json").read_bytes())
    assert pages[0] == pages[1]


def test_what_cannot_be_compared_is_refused(refused, runs: Path):
    kd = runs / "kd0"
    refused(
        f"compare {kd} {runs}/less --out c",
        r"runs must be on the same data to be compared, but .*kd0 is on digits \(54 "
        r"training, 6 validation and .* and .*less on digits \(45 .*; compare them apa",
    )
    value = json.loads((kd / "report.json").read_text())
    copied(kd, Path("named"), data=value["data"] | {"name": "cifar10"})
    refused(f"compare {kd} named --out c", r"named on cifar10 \(54 training")
    rows = [row | {"name": f"{row['name']}!"} for row in value["per_class"]]
    copied(kd, Path("classes"), per_class=rows)
    refused(
        f"compare {kd} classes --out c",
        "runs must be on the same classes to be compared, but '0' is one of .*kd0 alon",
    )
    copied(kd, Path("later"), schema=2)
    refused(f"compare {kd} later --out c", "must be of schema 1, but .* has schema 2")
    Path("empty").mkdir()
    refused(
        f"compare {kd} empty --out c",
        "a run must hold a report, but empty/report.json does not exist; make one with",
    )
    refused(f"compare {kd} nowhere --out c", "a run must hold a report, but nowhere d")
    refused(f"compare {kd} {kd} --out c", "every run must be named once, but .*kd0 an")
    refused(f"compare {kd} --out empty", "the output must not exist yet, but empty doe")
    refused("compare --out c", "at least 1 item")


def test_runs_on_other_test_images_are_refused(refused, runs: Path):
    other = copied(runs / "kd1", Path("other"))
    source = runs / "kd1" / "predictions" / "test.safetensors"
    text = source.read_bytes()
    kept = load_predictions(source)
    (other / "predictions").mkdir()
    changed = text.replace(kept.images.encode(), b"0" * len(kept.images))
    (other / "predictions" / "test.safetensors").write_bytes(changed)
    refused(
        f"compare {runs}/kd0 other --out c",
        "runs must be on the same test images to be compared, but those of other are n",
    )
    (other / "predictions" / "test.safetensors").write_bytes(text[:100])
    refused(f"compare {runs}/kd0 other --out c", "must be a whole safetensors file")


def test_a_license_must_be_one(refused, zoo: Path):
    refused(
        f"fuse {zoo} --method soup {DIGITS} --license Mine! --out run",
        "--license must be an identifier in lower case .*, but is 'Mine!'; choose one",
    )
