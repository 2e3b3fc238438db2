"""Every command line of the README parses, by the parser of its command."""

import re
import shlex
from pathlib import Path

import pytest

from metaensemble.cli import (
    compare,
    demo,
    evaluate,
    export,
    learn_weightformer,
    methods,
    predict,
    teach,
)
from metaensemble.cli.fuse import Fuse
from metaensemble.cli.main import COMMANDS
from metaensemble.cli.parse import parse, parse_with_method
from metaensemble.workflows.fuse import FuseConfig

README = Path(__file__).parents[2] / "README.md"

PARSERS = {
    "demo": lambda words: parse(demo.Demo, words, "demo"),
    "teach": lambda words: parse(teach.Teach, words, "teach", hidden=("name",)),
    "fuse": lambda words: parse_with_method(
        Fuse, FuseConfig, words, "fuse", positional="members"
    ),
    "learn-weightformer": lambda words: parse(
        learn_weightformer.LearnWeightformer,
        words,
        "learn-weightformer",
        positional="zoo",
    ),
    "predict": lambda words: parse(
        predict.Predict, words, "predict", positional="members"
    ),
    "evaluate": lambda words: parse(
        evaluate.Evaluate, words, "evaluate", positional="models"
    ),
    "compare": lambda words: parse(
        compare.Compare, words, "compare", positional="runs"
    ),
    "export": lambda words: parse(export.Export, words, "export", positional="run"),
    "methods": lambda words: parse(methods.Methods, words, "methods"),
}
"""Command to what its `run` does before anything else."""


def command_lines(text: str) -> list[str]:
    """The lines of fenced blocks that call us; continued lines are joined."""
    blocks = re.findall(r"^```(?:bash|sh|console|shell)\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    called = (line.strip().removeprefix("$ ") for line in lines)
    return [c for c in called if c.startswith("metaensemble ") and "..." not in c]


def examples() -> list[str]:
    """The README's lines, and the examples that the commands' help gives."""
    told = []
    for kind in (
        demo.Demo,
        teach.Teach,
        Fuse,
        learn_weightformer.LearnWeightformer,
        predict.Predict,
        evaluate.Evaluate,
        compare.Compare,
        export.Export,
        methods.Methods,
    ):
        _, _, told_from = (kind.__doc__ or "").partition("Example: ")
        told.append(" ".join(told_from.split("\n\n")[0].split()))
    return command_lines(README.read_text(encoding="utf-8")) + told


def test_every_command_has_its_parser_here():
    assert PARSERS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("line", examples())
def test_it_parses(line):
    words = shlex.split(line, comments=True)[1:]
    if "--help" in words:
        assert words[0] in COMMANDS
        return
    if "--config" in words:
        pytest.skip("its file is not there")
    assert PARSERS[words[0]](words[1:])


def test_continued_lines_and_prompts_are_understood():
    text = (
        "```bash\n$ metaensemble fuse a b \\\n    --method kd\nls\n"
        "metaensemble fuse MEMBER...\n```\n```python\nmetaensemble x\n```\n"
    )
    assert command_lines(text) == ["metaensemble fuse a b      --method kd"]
