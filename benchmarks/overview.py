"""Writes README.md of this folder: every study on one page.

Command: .venv/bin/python benchmarks/overview.py
Question and takeaway are those of the studies' own READMEs, tables those of their
table.md, minutes and commands those of plan.py. A test checks that it is up to date.
"""

import re
from pathlib import Path

from plan import ENTRIES, Entry

HERE = Path(__file__).parent
ROWS = 12
"""Lines of a table that are shown here."""
HEAD = """\
# Studies

Every figure in this repository comes from one of these. Each folder holds question,
setting, command, what came out and what we make of it; `report.json` is as the command
wrote it, and [LOG.md](LOG.md) has the trials, failures included.

```
make benchmarks DATA=path/to/cifar10        # the CPU tier, {minutes}
make benchmarks-gpu DATA=path/to/cifar10    # full CIFAR-10 on a GPU: gpu/README.md
```

`make benchmarks` works in a copy (`WORK=benchmarks-out`) and leaves the committed
reports alone; two studies at a time, those that measure time alone and last. In the end
it compares what it found with what is committed, figure by figure: with the same code,
machine and versions studies on the CPU are equal to the bit, else they should agree
within two standard errors. Without DATA the studies that need CIFAR-10 are left out; a
second call goes on where the first one ended; `benchmarks/all.py --only NAME` runs one.
Minutes are of one core, of the whole study.
"""


def page() -> str:
    """Return the page."""
    beside = sum(entry.minutes for entry in ENTRIES if entry.commands)
    alone = sum(e.minutes for e in ENTRIES if e.commands and e.alone)
    minutes = f"some {(beside - alone) // 2 + alone} minutes on 2 idle cores"
    known = [entry for entry in ENTRIES if (HERE / entry.name / "report.json").exists()]
    lines = [
        HEAD.format(minutes=minutes),
        "| study | question | minutes | in the CPU tier |",
        "| --- | --- | ---: | --- |",
    ]
    for entry in known:
        whole = f"{60 * entry.hours:.0f}" if entry.hours else f"{entry.minutes}"
        tier = entry.part or ("all of it" if entry.commands else "no")
        question = _flat(_said(entry.name, "Question"))
        lines.append(
            f"| [{entry.name}](#{entry.name}) | {question} | {whole} | {tier} |"
        )
    return "\n".join([*lines, "", *(_section(entry) for entry in known)])


def _section(entry: Entry) -> str:
    name = entry.name
    folder = f"[{name}]({name}/README.md)"
    lines = [f"## {name}", "", _flat(_said(name, "Question")), ""]
    if entry.commands:
        commands = [one.format(**FILLED) for one in entry.commands]
        lines += ["```", *commands, "```", ""]
    lines += [_table(name), f"**Takeaway.** {_takeaway(name)} More: {folder}.", ""]
    return "\n".join(lines)


FILLED = {"python": "python", "data": "CIFAR10", "work": "WORK"}


def _said(name: str, word: str) -> str:
    """Return what a study's README says under a bold word, to the next one."""
    text = (HERE / name / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"\*\*{word}\.\*\*(.*?)(?=\n\*\*|\n<!--|\n#|\Z)", text, re.S)
    assert found, f"{name} says no {word}"
    return found[1].strip()


def _takeaway(name: str) -> str:
    """Return the first paragraph, or the first two points."""
    text = _said(name, "Takeaway").split("\n\n")[0]
    head, *points = re.split(r"\n?^- ", text, flags=re.M)
    kept = [_flat(part) for part in (head, *points[: 1 if head.strip() else 2])]
    return _linked(" ".join(part for part in kept if part), name)


def _table(name: str) -> str:
    """Return the first table of a study, its first lines."""
    for path in ("table.md", "one-start/summary.md"):
        if (HERE / name / path).exists():
            lines = (HERE / name / path).read_text(encoding="utf-8").splitlines()
            start = next(i for i, line in enumerate(lines) if line.startswith("|"))
            table = []
            for line in lines[start:]:
                if not line.startswith("|"):
                    break
                table.append(line)
            more = len(table) - 2 - ROWS
            rest = f"\n*{more} more in [{path}]({name}/{path}).*\n" if more > 0 else ""
            return "\n".join(table[: 2 + ROWS]) + "\n" + rest
    return ""


def _linked(text: str, name: str) -> str:
    """Return the text with its links as from this folder."""
    return re.sub(r"\]\((?!http|#)([^)]*)\)", rf"]({name}/\1)", text)


def _flat(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
