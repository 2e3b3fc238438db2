"""The examples are short, listed, and do what they say."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PROMISED = {
    "deploy": "% right",
    "merge_fine_tunes": "learned_soup",
    "own_data": "('cross', 'disc', 'square'), 192 images to learn from",
    "own_method": "logit_matching",
    "own_network": "kd",
    "python_api": "best_member: student",
}
"""What each prints, among other things."""


def test_every_example_is_known_here():
    assert [path.stem for path in EXAMPLES] == sorted(PROMISED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_it_shows(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    header = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{path.name}" in " ".join(header.split())
    assert f"| `{path.name}` |" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow  # a few seconds each
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    if path.stem == "deploy":
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAENSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(FOLDER)  # as for every script
    before = set(sys.modules)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        for name in set(sys.modules) - before:
            if name == path.stem:
                del sys.modules[name]
    out = capsys.readouterr().out
    assert PROMISED[path.stem] in out
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])
