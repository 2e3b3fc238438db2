"""docs/methods.md says what the registry says."""

from pathlib import Path

import pytest

from metaensemble.cli import main
from metaensemble.workflows.methods_page import COMMAND, methods_page
from metaensemble.workflows.registry import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]):
    assert main(["methods", "--markdown"]) == 0
    made = capsys.readouterr().out
    assert made == methods_page()
    assert PAGE.read_text(encoding="utf-8") == made, f"make it anew: {COMMAND}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section(name: str):
    kind = METHODS[name]
    _, _, rest = methods_page().partition(f"\n## {name}\n")
    section, _, _ = rest.partition("\n## ")
    for text in (kind.cost, kind.paper, *kind.needs):
        assert text in section
    base = kind.__mro__[1].model_fields if len(kind.__mro__) > 1 else {}
    for field in kind.model_fields:
        if field != "name" and field not in base:
            assert f"| `{field}` |" in section
    assert section.count("```") % 2 == 0


def test_the_overview_links_every_section():
    page = methods_page()
    for name, kind in METHODS.items():
        assert f"| [{name}](#{name}) | " in page
        assert kind.summary.replace("|", "\\|") in page
