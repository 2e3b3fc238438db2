"""The pages of docs/: their commands parse, their code runs, their keys are all."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import metaensemble
from metaensemble.core.errors import InputError
from metaensemble.core.states import NESTS, WRAPPERS
from metaensemble.data import folder, parquet
from metaensemble.export.deployed import ExportInfo
from metaensemble.report import Report, Rows, Study
from metaensemble.report.comparison import Comparison
from metaensemble.report.files import OPTIONAL
from metaensemble.teachers import MemberInfo
from metaensemble.weightformer.predictor import PredictorInfo
from metaensemble.workflows import conditioning
from tests.surface.test_readme import PARSERS, command_lines

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """The fenced blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def file_named(block: str) -> str | None:
    """The file that a block is, by its first line; None if it is to be run."""
    match = re.match(r"# (\w+\.py)\n", block)
    return match[1] if match else None


def commands(*, within: bool) -> list[Any]:
    """The command lines of all pages: in blocks, or within sentences."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = command_lines(text)
        if within:
            told = re.findall(r"`(metaensemble [a-z][^`\n]+ --[^`\n]+)`", text)
            lines = [line for line in told if "..." not in line]
        found += [pytest.param(x, id=f"{page.stem}: {x[13:60]}") for x in lines]
    return found


def parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    assert words[0] in PARSERS
    if not {"--help", "--config"} & set(words):
        # the one ends the parser, the other's file is not there
        assert PARSERS[words[0]](words[1:])


@pytest.mark.parametrize("line", commands(within=False))
def test_every_command_line_parses(line: str):
    parse(line)


@pytest.mark.parametrize("line", commands(within=True))
def test_what_a_sentence_says_of_a_command_parses(line: str):
    try:
        parse(line)
    except InputError as error:  # a sentence may leave out --data and --out
        if not str(error).startswith("all required options must be given"):
            raise


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_python_parses(page: Path):
    for block in blocks(page.read_text(encoding="utf-8")):
        ast.parse(block)


def test_the_examples_of_extending_run(tmp_path: Path):
    """In one process of its own: they import from their folder, as a user's would."""
    told = []
    for block in blocks(text_of("extending.md")):
        name = file_named(block)
        if name:
            (tmp_path / name).write_text(block, encoding="utf-8")
        else:
            told.append(block)
    (tmp_path / "all.py").write_text("\n".join(told), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "all.py"],
        cwd=tmp_path,
        env={"METAENSEMBLE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "median_soup" in done.stdout


def test_the_tables_of_choosing_are_the_reports(script):
    made = script(ROOT / "benchmarks" / "choosing.py")
    text = text_of("choosing.md")
    assert text == made.filled(text), "make it anew: python benchmarks/choosing.py"


def records(kind: Any, seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """A record and all that lie in it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in seen:
            seen.add(kind)
            yield kind
            for info in kind.model_fields.values():
                yield from records(info.annotation, seen)
        return
    for part in get_args(kind):
        yield from records(part, seen)


def keys() -> list[str]:
    seen: set[type[BaseModel]] = set()
    roots = (Report, Rows, Study, Comparison, MemberInfo, ExportInfo)
    kinds = [kind for root in roots for kind in records(root, seen)]
    fields = {
        info.alias or name for kind in kinds for name, info in kind.model_fields.items()
    }
    return sorted(fields | PredictorInfo.model_fields.keys())


@pytest.mark.parametrize("key", keys())
def test_every_key_of_a_file_is_described(key: str):
    assert f"`{key}`" in text_of("formats.md") + text_of("metrics.md")


@pytest.mark.parametrize("key", OPTIONAL)
def test_optional_keys_are_told_from_the_others(key: str):
    fixed, _, optional = text_of("formats.md").partition("\nOptional:\n")
    _, _, fixed = fixed.partition("\n## report.json, schema 1\n")
    assert f"| `{key}` |" in optional
    assert f"| `{key}` |" not in fixed


def test_every_figure_of_conditioning_is_described():
    _, _, section = text_of("metrics.md").partition("\n## Conditioning\n")
    named = re.findall(r"``(\w+)``", conditioning.__doc__ or "")
    assert len(set(named)) > 8
    for name in named:
        assert f"`{name}`" in section


def test_what_data_and_checkpoints_may_hold_is_described():
    page = text_of("formats.md")
    names = (*folder.TEST_NAMES, *parquet.IMAGE_COLUMNS, *parquet.LABEL_COLUMNS)
    for name in (*names, *NESTS, *WRAPPERS):
        assert f"`{name}`" in page


def test_the_python_interface_is_documented():
    page = text_of("api.md")
    for name in metaensemble._HOMES:
        assert f":: metaensemble.{name}\n" in page
    for name in ("methods", "merging"):
        assert f":: metaensemble.{name}\n" in page


def test_the_index_leads_to_every_page():
    index = text_of("index.md")
    for page in PAGES:
        if page.stem != "index":
            assert f"]({page.name})" in index
            assert f"\n{page.stem}\n" in index  # in the menu
