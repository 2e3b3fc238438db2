"""The page of all methods, docs/methods.md, read off the registry."""

import inspect
from typing import Any

from metaensemble.core.method import Method
from metaensemble.merging import Merger
from metaensemble.methods import Distillation, OnlineMethod, TrainedMethod
from metaensemble.workflows.registry import METHODS

COMMAND = "metaensemble methods --markdown > docs/methods.md"
"""Makes the page."""

HEAD = f"""\
# The methods

Made by `{COMMAND}`; do not edit.
`metaensemble fuse --method NAME --help` says the same of one method. Every
hyperparameter is a flag (`label_weight` is `--label-weight`), a key of a YAML file, and
an argument of the classes in `metaensemble.methods` and `metaensemble.merging`.

Needs: *one architecture*: of all members, with one order of classes and one size of
images; *one start*: members fine-tuned from common weights; *images*: of the training
split, whose labels are not looked at unless a weight asks for them; *labels*: of the
split named. Test images are touched once, for the report. Methods that distil take a
single teacher, too; those that merge two or more; those that train an ensemble take
none, but the architecture of its networks: `metaensemble fuse --method one --student
resnet20 --data ... --out run`.
"""


def methods_page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD, _overview()]
    for name, kind in METHODS.items():
        parts.append(_section(name, kind))
    parts.append(
        "## What methods that train share\n\nUnless a method's own table says "
        "otherwise. `start` and `plain` are of those that distil.\n\n"
        + _table(Distillation, Method)
    )
    return "\n".join(parts)


def _overview() -> str:
    lines = ["| method | what it does | needs | cost | paper |", "|" + 5 * "---|"]
    for name, kind in METHODS.items():
        needs = ", ".join(kind.needs)
        cells = (f"[{name}](#{name})", kind.summary, needs, kind.cost, kind.paper)
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def _section(name: str, kind: type[Method]) -> str:
    trained = issubclass(kind, TrainedMethod)
    shared = Distillation if issubclass(kind, Distillation) else TrainedMethod
    needs = ", ".join(kind.needs) or "nothing but the members"
    facts = [
        f"- **Needs:** {needs}",
        f"- **Members:** {_members(kind)}",
        f"- **Cost:** {kind.cost}",
        f"- **Paper:** {kind.paper}",
    ]
    table = _table(kind, shared if trained else Merger)
    end = (
        "\nThe rest: [what methods that train share](#what-methods-that-train-share).\n"
        if trained
        else ""
    )
    text = _prose(inspect.getdoc(kind) or "")
    return f"## {name}\n\n{text}\n\n" + "\n".join(facts) + f"\n\n{table}{end}"


def _members(kind: type[Method]) -> str:
    if kind.fewest_members:
        return f"{kind.fewest_members} or more"
    some = issubclass(kind, OnlineMethod) and kind.takes_members
    return f"none{', or some' if some else ''}; `--student` names the networks"


def _table(kind: type[Method], base: type[Method]) -> str:
    """Return the fields that `kind` has or changes beyond those of `base`."""
    known = base.model_fields
    rows = []
    for name, info in kind.model_fields.items():
        same = name in known and known[name].default == info.default
        if name == "name" or same:
            continue
        value = _cell(f"`{_value(info.default)}`")
        rows.append(f"| `{name}` | {value} | {_cell(info.description or '')} |")
    if not rows:
        return "No hyperparameters of its own.\n"
    head = ["| hyperparameter | default | what |", "|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _prose(text: str) -> str:
    """Return a docstring's paragraphs; formulas stand as they are typed."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"```text\n{part}\n```" if " = " in part.split("\n")[0] else part
        for part in paragraphs
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _value(default: Any) -> str:
    if isinstance(default, str):
        return default
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "()"
    return str(default)
