"""What a newcomer sees first."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaensemble.cli import main
from metaensemble.cli.demo import Demo
from metaensemble.cli.evaluate import Evaluate
from metaensemble.cli.main import COMMANDS
from metaensemble.workflows.comparing import CompareOptions
from metaensemble.workflows.exporting import ExportOptions
from metaensemble.workflows.fuse import FuseOptions
from metaensemble.workflows.learning import LearnOptions
from metaensemble.workflows.predict import PredictOptions
from metaensemble.workflows.registry import METHODS
from metaensemble.workflows.teach import TeachOptions


def said(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main(line.split())
    except SystemExit as leaving:
        status = leaving.code
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return " ".join(out.split())


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_the_start_page_lists_every_command(capsys, line):
    out = said(line, capsys)
    assert out.startswith("usage: metaensemble COMMAND")
    for name, told in COMMANDS.items():
        assert f"{name} {told}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_by_an_example(capsys, command):
    out = said(f"{command} --help", capsys)
    assert out.startswith(f"usage: metaensemble {command}")
    assert f"Example: metaensemble {command}" in out


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_own_flags_are_in_its_help(capsys, name):
    out = said(f"fuse --method {name} --help", capsys)
    for field in METHODS[name].model_fields:
        flag = "method" if field == "name" else field.replace("_", "-")
        assert f"--{flag}" in out


@pytest.mark.parametrize(
    "options",
    [
        CompareOptions,
        ExportOptions,
        FuseOptions,
        LearnOptions,
        PredictOptions,
        TeachOptions,
        Demo,
        Evaluate,
    ],
)
def test_every_flag_is_explained(options):
    for name, info in options.model_fields.items():
        assert info.description, f"{options.__name__}.{name} lacks a docstring"


def test_the_start_page_is_there_at_once():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "metaensemble", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - began < 5  # a loaded machine; 0.1 s on an idle one
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "metaensemble.cli.main" in loaded
    assert not loaded & {"torch", "numpy", "tyro", "pydantic", "sklearn"}


def test_a_reader_that_has_seen_enough_ends_it_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def tell(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("metaensemble.cli.methods.run", tell)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["methods"]) == 141
        print("more", flush=True)  # what is left when the process ends
        monkeypatch.undo()
    assert (tmp_path / "out").read_text() == capsys.readouterr().err == ""
