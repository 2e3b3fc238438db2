"""How `make docs` turns the pages of this folder, and docstrings, into site/.

Nothing is fetched: no fonts, scripts or inventories of other hosts. The pages open from
disk, and read as plain Markdown, too; so formulas are text.
"""

import re
from importlib.metadata import version as version_of

from pydantic import BaseModel
from sphinx.application import Sphinx

project = "metaensemble"
author = "The metaensemble authors"
copyright = author
version = release = version_of("metaensemble")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # so that #section works as it does where Markdown is shown
suppress_warnings = [
    "misc.highlighting_failure",  # JSON with places left open
    "ref.python",  # the words of a Literal are no references
]

default_role = "code"  # `name` in a docstring is often a parameter, not a target
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "undoc-members": True,
    "exclude-members": "model_config, model_post_init",
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are described once

html_theme = "furo"
html_title = f"metaensemble {version}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Register what Sphinx does not do by itself."""
    app.connect("source-read", _files_of_the_repository)
    app.connect("autodoc-process-docstring", _plain_formulas, priority=100)
    app.connect("autodoc-process-signature", _without_fields)


def _files_of_the_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links out of this folder into links to copies of those files."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+)\)", r"](path:\1)", source[0])


def _plain_formulas(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Let ``|x| * y`` in a docstring be what it is, not markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``?[^`]+``?|^ *\* )", line)  # code, or a list's mark
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def _without_fields(app: Sphinx, what: str, name: str, thing: object, *_: object):
    """Leave out the signature of configs and records: their fields stand below it."""
    if what == "class" and isinstance(thing, type) and issubclass(thing, BaseModel):
        return "", None
    return None
