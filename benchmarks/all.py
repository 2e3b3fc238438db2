"""Makes the studies of the CPU tier anew, and says whether they agree with ours.

Command: .venv/bin/python benchmarks/all.py --work WORK [--data CIFAR10] [--only NAME]
(or `make benchmarks DATA=CIFAR10 WORK=WORK`). The committed reports are not touched:
the studies run in a copy of this folder, WORK/benchmarks. Studies that learn run two at
a time, one core each; those that measure time run alone, afterwards. An interrupted
call goes on where it was: a study that is done is not made again. Without CIFAR-10 the
studies that need it are left out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agreement import compared, good, table
from plan import ENTRIES, Entry

HERE = Path(__file__).parent
ROOT = HERE.parent
MADE = ("report.json", "table.md", "summary.md")
"""What studies write."""


def main() -> None:
    names = [entry.name for entry in ENTRIES if entry.commands]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", default="", help="CIFAR-10; empty: do without")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--jobs", type=int, default=2, help="studies at a time")
    options = parser.parse_args()
    work = options.work.absolute()
    data = str(Path(options.data).absolute()) if options.data else ""
    wanted = [entry for entry in ENTRIES if entry.name in options.only]
    for entry in wanted:
        if entry.needs_data and not data:
            print(f"{entry.name} is left out: it needs --data")
    todo = [entry for entry in wanted if data or not entry.needs_data]
    copied(work)
    minutes = planned(todo, options.jobs)
    print(f"{len(todo)} studies, some {minutes} minutes on an idle machine", flush=True)
    failed = run(todo, work, data, options.jobs)
    names = [entry.name for entry in todo]
    found = [
        one
        for one in compared(work / "benchmarks", HERE)
        if one.study.split("/")[0] in names
    ]
    text = table(found)
    (work / "agreement.md").write_text(text, encoding="utf-8")
    print(text)
    for name in failed:
        print(f"{name} failed: {work / 'logs' / name}.log says why")
    raise SystemExit(bool(failed) or not good(found))


def planned(entries: list[Entry], jobs: int) -> int:
    """Return the minutes that the entries take, by the plan."""
    beside = sum(entry.minutes for entry in entries if not entry.alone)
    alone = sum(entry.minutes for entry in entries if entry.alone)
    return round(beside / jobs) + alone


def copied(work: Path) -> None:
    """Copy this folder; link what scripts refer to.

    What studies have made is copied, too, since some read others' reports; a study that
    begins here begins without its own.
    """
    target = work / "benchmarks"
    if not target.exists():
        whole = work / "benchmarks.partial"
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(HERE, whole, ignore=shutil.ignore_patterns("__pycache__"))
        whole.rename(target)
    for name in ("tests", ".venv", "metaensemble", "pyproject.toml"):
        if (ROOT / name).exists() and not (work / name).exists():
            (work / name).symlink_to(ROOT / name)
    (work / "logs").mkdir(exist_ok=True)


def begun(entry: Entry, work: Path) -> None:
    """Remove what a study has made before it begins for the first time."""
    mark = work / "logs" / f"{entry.name}.begun"
    if not mark.exists():
        for name in MADE:
            for path in (work / "benchmarks" / entry.name).glob(f"**/{name}"):
                path.unlink()
        mark.touch()


def run(entries: list[Entry], work: Path, data: str, jobs: int) -> list[str]:
    """Run the studies that are not done; return the names of those that failed."""
    failed = []
    beside = sorted((e for e in entries if not e.alone), key=lambda e: -e.minutes)
    parts = beside, [e for e in entries if e.alone]
    for part, workers in zip(parts, (jobs, 1), strict=True):
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(lambda entry: finished(entry, work, data), part)
            failed += [
                e.name for e, fine in zip(part, results, strict=True) if not fine
            ]
    return failed


def finished(entry: Entry, work: Path, data: str) -> bool:
    """Run one study, its output in a log; return whether it came to its end."""
    done = work / "logs" / f"{entry.name}.done"
    if done.exists():
        print(f"{entry.name} is done already", flush=True)
        return True
    begun(entry, work)
    own = work / "zoos" / entry.name
    own.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if not entry.alone:
        environment["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    print(f"{entry.name}: some {entry.minutes} minutes", flush=True)
    with (work / "logs" / f"{entry.name}.log").open("w", encoding="utf-8") as log:
        for command in entry.commands:
            line = command.format(python=sys.executable, data=data, work=own)
            log.write(f"$ {line}\n")
            log.flush()
            folder = work / "benchmarks"
            process = subprocess.run(
                line, shell=True, cwd=folder, env=environment, stdout=log, stderr=log
            )
            if process.returncode:
                print(f"{entry.name}: failed", flush=True)
                return False
    took = (time.monotonic() - began) / 60
    done.write_text(f"{took:.1f} minutes\n", encoding="utf-8")
    print(f"{entry.name}: {took:.1f} minutes", flush=True)
    return True


if __name__ == "__main__":
    main()
