"""Do newly made reports agree with the committed ones, within their intervals?

Command: .venv/bin/python benchmarks/agreement.py NEW [COMMITTED]
NEW holds a folder per study, as `all.py` leaves them. Rows that both have are compared:
first by seed and bit by bit, else by means over the seeds of both, with the standard
errors that the tables state (one seed: the binomial error of the test set).
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaensemble.workflows.registry import METHODS, make_method

HERE = Path(__file__).parent
FIGURES = ("accuracy", "nll", "ece", "kl")
"""What is compared; times and memory are another machine's own."""
ERRORS = 2.0
"""Combined standard errors within which two means agree."""
OUTSIDE = 0.05
"""Share of the comparisons that may fall outside, as chance has it."""
TEST_IMAGES = 10_000
"""Of CIFAR-10, which the studies of one seed use."""
EXEMPT = ("latency", "second", "megabyte", "peak", "rate", "minutes")
"""Words in the names of figures that are times or memory."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One figure of one kind of row, committed and new."""

    study: str
    row: str
    figure: str
    committed: float
    new: float
    error: float
    """Of their difference."""
    equal: bool
    """Whether every seed of the new report has the committed bits."""

    @property
    def agrees(self) -> bool:
        """Return whether the difference is within the stated errors."""
        return self.equal or abs(self.new - self.committed) <= ERRORS * self.error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new", type=Path)
    parser.add_argument("committed", type=Path, nargs="?", default=HERE)
    options = parser.parse_args()
    found = compared(options.new, options.committed)
    print(table(found))
    raise SystemExit(not good(found))


def compared(new: Path, committed: Path) -> list[Comparison]:
    """Return the comparisons of all studies that both folders hold."""
    found: list[Comparison] = []
    for path in sorted(new.glob("**/report.json")):
        own = path.relative_to(new)
        if (committed / own).exists():
            pair = (_rows(committed / own), _rows(path))
            found += comparisons(str(own.parent), *pair)
    return found


def comparisons(
    study: str, committed: list[dict[str, Any]], new: list[dict[str, Any]]
) -> list[Comparison]:
    """Return the comparisons of one study's rows."""
    old, made = _grouped(committed), _grouped(new)
    found = []
    for key in made.keys() & old.keys():
        before, after = old[key], made[key]
        first = next(iter(after.values()))
        for figure in first:
            if any(figure not in row for row in (*before.values(), *after.values())):
                continue
            a = {seed: row[figure] for seed, row in before.items()}
            b = {seed: row[figure] for seed, row in after.items()}
            equal = all(a.get(seed) == value for seed, value in b.items())
            common = a.keys() & b.keys()
            shown = {seed: a[seed] for seed in common} or a
            errors = _error(figure, a, len(shown)), _error(figure, b, len(b))
            means = statistics.fmean(shown.values()), statistics.fmean(b.values())
            if equal or None not in errors:
                error = math.hypot(*(one or 0.0 for one in errors))
                row = " ".join(key)
                found.append(Comparison(study, row, figure, *means, error, equal))
    return sorted(found, key=lambda one: (one.study, one.row, one.figure))


def good(found: list[Comparison]) -> bool:
    """Return whether no more comparisons fall outside than chance explains."""
    outside = sum(not one.agrees for one in found)
    return outside <= max(1, OUTSIDE * len(found))


def table(found: list[Comparison]) -> str:
    """Return counts per study and what falls outside, in Markdown."""
    lines = [
        "| study | figures | equal to the bit | within their errors | outside |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    by: dict[str, list[Comparison]] = defaultdict(list)
    for one in found:
        by[one.study].append(one)
    for study, own in by.items():
        equal = sum(one.equal for one in own)
        within = sum(one.agrees and not one.equal for one in own)
        rest = len(own) - equal - within
        lines.append(f"| {study} | {len(own)} | {equal} | {within} | {rest} |")
    outside = [one for one in found if not one.agrees]
    for one in outside:
        lines += [""] * (one is outside[0])
        lines.append(
            f"- {one.study}, {one.row}: {one.figure} was {one.committed:.4g}, is "
            f"{one.new:.4g}, error of the difference {one.error:.2g}"
        )
    lines += ["", f"*Within {ERRORS:g} combined standard errors.*", ""]
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def _grouped(rows: list[dict[str, Any]]) -> dict[Key, dict[Any, dict[str, float]]]:
    """Return, per kind of row, its figures by seed (and draw)."""
    groups: dict[Key, dict[Any, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        if "student" in row:
            key = (
                row["teachers"][0]["architecture"] if row["teachers"] else "",
                *(str(row[name]) for name in ("regime", "stage") if row.get(name)),
                *_settings(row["method"]),
            )
            figures = dict(_flat({"": row["student"]["test"]}))
        else:
            key = tuple(value for value in row.values() if isinstance(value, str))
            figures = dict(_flat(row))
        seed = (row.get("seed"), row.get("draw"), row.get("pair"))
        if figures:
            groups[key].setdefault(seed, figures)
    return groups


def _settings(method: dict[str, Any]) -> list[str]:
    """Return a method's name and the fields that are not its defaults."""
    name = method["name"]
    usual: dict[str, Any] = {}
    if name in METHODS:
        usual = make_method(name).model_dump(mode="json")
    other = [f"{k}={v}" for k, v in method.items() if k != "name" and v != usual.get(k)]
    return [name, *other]


def _flat(row: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        full = f"{before} {name}".strip()
        if isinstance(value, dict):
            yield from _flat(value, full)
        elif isinstance(value, float) and not any(word in full for word in EXEMPT):
            if any(figure in full for figure in FIGURES) or name == "test":
                yield full, value


def _error(figure: str, values: dict[Any, float], seeds: int) -> float | None:
    """Return the standard error of a mean over so many seeds; None: unknown."""
    if len(values) > 1:
        return statistics.stdev(values.values()) / seeds**0.5
    (value,) = values.values()
    if "accuracy" in figure or figure == "test":
        return (max(value * (1 - value), 0.0) / TEST_IMAGES) ** 0.5
    return None


if __name__ == "__main__":
    main()
