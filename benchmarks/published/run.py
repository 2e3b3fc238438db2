"""The published differences beside those of our studies, misses left in.

Command: .venv/bin/python benchmarks/published/run.py
Nothing is trained: it reads the reports of the other studies and writes report.json,
table.md and the table of README.md, in seconds.
"""

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from claims import CLAIMS, Claim, Figure
from scipy.stats import t

from metaensemble.core.files import write_json, write_text

HERE = Path(__file__).parent
STUDIES = HERE.parent
LEVEL = 0.95
VERDICTS = ("seen", "not shown", "opposite")
"""The interval is on the published side of zero; it has zero inside; on the other."""
MARKED = re.compile(r"(<!-- table published -->\n).*?(<!-- end published -->)", re.S)

Row = dict[str, Any]


def main() -> None:
    rows = list(compared())
    document = {"schema": 1, "study": "published", "rows": rows}
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))
    readme = HERE / "README.md"
    write_text(readme, filled(readme.read_text(encoding="utf-8"), rows))


def compared() -> Iterator[Row]:
    """Yield what was found for every claim whose study has rows for it."""
    for claim in CLAIMS:
        values = differences(claim)
        if len(values) < 2:
            continue  # no interval: a tier of one seed leaves it out
        mean = statistics.fmean(values)
        error = statistics.stdev(values) / math.sqrt(len(values))
        half = error * float(t.ppf((1 + LEVEL) / 2, len(values) - 1))
        yield {
            "method": claim.method,
            "what": claim.what,
            "published": claim.published,
            "where": claim.where,
            "study": claim.study,
            "unit": claim.unit,
            "here": mean,
            "standard_error": error,
            "half_interval": half,
            "runs": len(values),
            "verdict": verdict(claim.expected, mean, half),
        }


def differences(claim: Claim) -> list[float]:
    """Return the claim's difference in every seed or draw that has both figures."""
    of, minus = (figures(claim.study, figure) for figure in (claim.of, claim.minus))
    scale = 1.0 if claim.unit == "nats" else 100.0
    return [
        scale * (of[key] - minus[key]) / (minus[key] if claim.relative else 1.0)
        for key in of
        if key in minus
    ]


def figures(study: str, figure: Figure) -> dict[Any, float]:
    """Return a figure by seed and draw.

    Raises:
        ValueError: several rows of one seed and draw fit.
    """
    found: dict[Any, list[float]] = defaultdict(list)
    for row in report(study):
        if all(fits(field(row, name), want) for name, want in figure.pick.items()):
            value: Any = row
            for name in figure.path.split("."):
                value = value[name]
            found[row.get("seed"), row.get("draw")].append(value)
    for key, values in found.items():
        if len(values) > 1:
            raise ValueError(
                f"{study}: one row per seed must fit {figure.pick}, but "
                f"{len(values)} of {key} do; name more fields"
            )
    return {key: values[0] for key, values in found.items()}


@cache
def report(study: str) -> list[Row]:
    """Return a study's rows; none where it has not run."""
    path = STUDIES / study / "report.json"
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


def field(row: Row, name: str) -> Any:
    """Return a field of a row, of its method, or of its teachers."""
    if name == "architecture" and row.get("teachers"):
        return row["teachers"][0]["architecture"]
    return row.get(name, row.get("method", {}).get(name))


def fits(value: Any, want: Any) -> bool:
    if isinstance(want, float) and isinstance(value, float):
        return math.isclose(value, want, rel_tol=1e-3)
    return value == want


def verdict(expected: int, mean: float, half: float) -> str:
    """Say whether the interval is on the side that was published."""
    seen, not_shown, opposite = VERDICTS
    inside = abs(mean) <= half
    if expected == 0:
        return seen if inside else opposite
    if inside:
        return not_shown
    return seen if mean * expected > 0 else opposite


def table(rows: list[Row]) -> str:
    lines = [
        "| method | difference | published | here | runs | verdict | study |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        digits = 3 if row["unit"] == "nats" else 1
        said = row["published"]
        if not isinstance(said, str):
            said = f"{said:+.{digits}f}"
        here = f"{row['here']:+.{digits}f} ± {row['half_interval']:.{digits}f}"
        lines.append(
            f"| {row['method']} | {row['what']} ({row['unit']}) | {said} | {here} "
            f"| {row['runs']} | {row['verdict']} | {row['study']} |"
        )
    count = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{count[word]} {word}" for word in VERDICTS)
    lines += [
        "",
        f"*{len(rows)} differences on test data: {counts}. "
        "±: half of the 95 % interval over runs.*",
    ]
    return "\n".join(lines) + "\n"


def sources(rows: list[Row]) -> str:
    """Return whence the published figures are, method by method."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["where"] not in found[row["method"]]:
            found[row["method"]].append(row["where"])
    return "\n".join(f"- {name}: {'; '.join(known)}" for name, known in found.items())


def filled(text: str, rows: list[Row]) -> str:
    """Return `text` with the table and the sources made anew."""
    body = f"{table(rows)}\nPublished on:\n\n{sources(rows)}\n"
    return MARKED.sub(lambda found: found[1] + body + found[2], text)


if __name__ == "__main__":
    main()
