"""Commands that are killed at random moments, and repeated, make the same bytes."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from metaensemble.teachers import Member
from tests.resume.commands import COMMANDS, NETWORK
from tests.resume.drawing import ALONE, TOGETHER, Draw, drawn, outcomes, planned
from tests.resume.killing import differences, remains, undisturbed
from tests.resume.launching import Forked

STUDY = Path(__file__).parents[2] / "benchmarks/resume"


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with closing(Forked()) as launcher:
        yield launcher


@pytest.mark.parametrize(
    "draw",
    [
        Draw(0, "teach", 1),
        Draw(1, "kd", 1),
        Draw(2, "weightformer", 1),
        Draw(3, "self_distillation", 1),
        Draw(4, "kd, perturbed", 2),
    ],
    ids=lambda draw: f"{draw.command} x{draw.processes}",
)
def test_a_killed_command_ends_in_the_same_bytes(
    draw: Draw,
    forked: Forked,
    make_member: Callable[..., Member],
    tmp_path: Path,
):
    first = make_member(tmp_path / "zoo/0.safetensors", 0, NETWORK)
    make_member(tmp_path / "zoo/1.safetensors", 1, NETWORK, first)
    command, whole = COMMANDS[draw.command], tmp_path / "whole"
    reference = undisturbed(command, draw.processes, forked, whole, tmp_path)
    launchers = (forked, forked)
    outcome, _ = drawn(draw, launchers, tmp_path / "run", tmp_path, reference)
    assert outcome.kills
    assert outcome.wrong == []


@pytest.mark.slow
def test_fifty_killed_commands_end_in_the_same_bytes(tmp_path: Path):
    rows = list(outcomes(planned(seed=1), tmp_path, seed=1))
    assert [row["draw"] for row in rows if not row["equal"]] == []
    assert len(rows) == ALONE + TOGETHER == 50
    assert sum(bool(row["resumed"]) for row in rows) > 25


def test_draws_cover_all_commands_and_depend_on_the_seed():
    draws = planned()
    pairs = {(draw.command, draw.processes) for draw in draws}
    assert pairs == {(n, p) for n, c in COMMANDS.items() for p in c.processes}
    assert [draw.number for draw in draws] == list(range(50))
    assert planned() == draws != planned(seed=1)


def test_what_differs_from_an_undisturbed_run_is_named():
    wanted = {"run": None, "run/a.safetensors": "1", "run/b.safetensors": "2"}
    found = {"run": None, "run/a.safetensors": "3", "run/.a.ckpt": None}
    assert differences(wanted, wanted) == []
    assert differences(found, wanted) == [
        "run/b.safetensors is missing",
        "run/.a.ckpt is left over",
        "run/a.safetensors has other bytes",
    ]


def test_what_a_kill_must_not_leave_is_named(make_member, tmp_path: Path):
    working = tmp_path / ".run.partial"
    make_member(working / "whole.safetensors", 0)
    content = (working / "whole.safetensors").read_bytes()
    (working / ".half.safetensors.1.tmp").write_bytes(content[:-10])
    assert remains(COMMANDS["teach"], tmp_path) == []
    (working / "half.safetensors").write_bytes(content[:-10])
    (tmp_path / "run").mkdir()
    exists, broken = remains(COMMANDS["teach"], tmp_path)
    assert exists == "run exists after the kill"
    assert broken.startswith("half.safetensors is broken after the kill")


@pytest.fixture(scope="module")
def study(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(STUDY / "run.py")


def test_the_study_holds_fifty_equal_results(study: ModuleType):
    report = json.loads((STUDY / "report.json").read_text())
    rows = report["rows"]
    assert (report["schema"], report["study"]) == (1, "resume")
    found = [(row["draw"], row["command"], row["processes"]) for row in rows]
    assert found == [(d.number, d.command, d.processes) for d in planned()]
    assert all(row["equal"] and not row["wrong"] for row in rows)
    assert (STUDY / "table.md").read_text() == study.table(rows)
