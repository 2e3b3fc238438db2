"""Where the time of the hot paths goes, what was mended, and whether cores idle.

Command: .venv/bin/python benchmarks/profile/run.py --work FOLDER \
    [--before FOLDER --commit NAME] [--only PATH...] [--parts paths stacked commands]

Writes report.json and table.md. `--before` names a folder with the package of an older
commit (`git archive COMMIT metaensemble | tar x -C FOLDER`), measured in turn with this
one; without it, the older rows stay. Rows that are not measured stay. About 12 minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from metaensemble.core.files import write_json, write_text

sys.path.insert(0, str(Path(__file__).parent))
from commands import rows as command_rows

HERE = Path(__file__).parent
PATHS = (
    "prediction",
    "weightformer step",
    "kd step",
    "matching",
    "evaluation",
    "evaluation, deep",
)
PARTS = ("paths", "stacked", "commands")
ROUNDS = 1
"""Processes per path and state, in turn; the fastest counts."""
WAYS = ("loop", "stack", "loop, large", "stack, large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--only", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    report = HERE / "report.json"
    kept = json.loads(report.read_text())["rows"] if report.exists() else []
    if "paths" in options.parts:
        for name in options.only:
            kept = merged(kept, path_rows(name, options))
            save(kept)
    if "stacked" in options.parts:
        for threads in (1, 2):
            done = call(["stacked.py", "--threads", str(threads)], threads=threads)
            kept = merged(kept, [{"kind": "stacked", **row} for row in done])
            save(kept)
    if "commands" in options.parts:
        save(merged(kept, command_rows(options.work / "commands")))


def path_rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a path, the older package's first if there is one."""
    command = ["measure.py", name, "--work", str(options.work)]
    command += ["--repeats", str(options.repeats)]
    states = {"now": None} | ({"before": options.before} if options.before else {})
    best: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for state, package in states.items():
            brief = ["--brief"] if state == "before" else []
            row = call([*command, *brief], package=package)
            row = {"kind": "path", "path": name, "state": state, **row}
            if state == "before":
                row["commit"] = options.commit
            if state not in best or spent(row) < spent(best[state]):
                best[state] = row
    print(name, {state: spent(row) for state, row in best.items()}, flush=True)
    return list(best.values())


def spent(row: dict[str, Any]) -> float:
    return row["seconds"]["processor"]


def call(command: list[str], *, threads: int = 1, package: Path | None = None) -> Any:
    # Passive: a thread that waits for another would count as busy otherwise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells rows apart, and their order."""
    if row["kind"] == "path":
        return 0, PATHS.index(row["path"]), row["state"]
    if row["kind"] == "stacked":
        return 1, row["threads"], row["architecture"]
    return 2, row["command"]


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[Any]:
    rows = {key(row): row for row in old} | {key(row): row for row in new}
    return sorted(rows.values(), key=lambda row: key(row)[:2])  # stable beyond


def save(rows: list[dict[str, Any]]) -> None:
    document = {
        "schema": 1,
        "study": "profile",
        "environment": {"torch": torch.__version__, "cores": os.cpu_count()},
        "rows": rows,
    }
    write_json(HERE / "report.json", document)
    write_text(HERE / "table.md", table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Return all tables."""
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in KINDS}
    tables = [KINDS[kind](found) for kind, found in kinds.items() if found]
    return "\n".join(tables)


def path_tables(rows: list[dict[str, Any]]) -> str:
    found = {(row["path"], row["state"]): row for row in rows}
    lines = [
        "| path | one run | s of one core, before | now | gain | floor: multiply-adds "
        "+ reading, s | now / floor | cores wanted of 2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shares = []
    for path in PATHS:
        row = found.get((path, "now"))
        if row is None:
            continue
        old = found.get((path, "before"))
        now, floor = spent(row), row["floor_seconds"]
        before, gain = ("", "")
        if old is not None:
            before, gain = f"{spent(old):.3f}", f"{spent(old) / now:.2f}"
        lines.append(
            f"| {path} | {row['what']} | {before} | {now:.3f} | {gain} "
            f"| {floor['multiply-adds']:.3f} + {floor['reading']:.3f} "
            f"| {now / sum(floor.values()):.1f} "
            f"| {row['seconds_of_two_threads']['cores']:.1f} |"
        )
        shares += ["", f"{path}, in % of the time:", ""]
        shares += ["| operator | % | calls |", "|---|---|---|"]
        shares += [
            f"| {each['operator']} | {100 * each['share']:.0f} | {each['calls']} |"
            for each in row["operators"]
        ]
    return "\n".join([*lines, *shares]) + "\n"


def stacked_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Microseconds of the processor per image and member:",
        "",
        "| members | threads | "
        + " | ".join(WAYS)
        + " | best loop / best stack | preparing an image |",
        "|---" * (len(WAYS) + 4) + "|",
    ]
    for row in rows:
        times = row["microseconds"]
        cells = " | ".join(f"{times[way]:.1f}" for way in WAYS)
        lines.append(
            f"| {row['members']} x {row['architecture']} | {row['threads']} | {cells} "
            f"| {quotient(times):.2f} | {row['preparing']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def quotient(times: dict[str, float]) -> float:
    """Return the best loop's time over the best stack's."""
    loop = min(time for way, time in times.items() if way.startswith("loop"))
    return loop / min(time for way, time in times.items() if way.startswith("stack"))


def command_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| command, two threads | seconds | cores wanted | in the busier half |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['command']} | {row['seconds']:.0f} | {row['cores']:.1f} "
        f"| {row['busy_half']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


KINDS = {"path": path_tables, "stacked": stacked_table, "command": command_table}

if __name__ == "__main__":
    main()
