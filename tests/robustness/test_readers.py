"""Whatever a file holds: it is read, or refused in one sentence, and nothing else.

What is judged, see `worker.judged`: no other exception, no code executed, no file
written, no more than 5 s of the processor and 300 MB of memory.
"""

import json
import random
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PER_READER = 60
"""Of 18 readers, so more than 1,000 in all."""


def faults(reads) -> list[str]:
    return [
        f"{read['reader']} {read['number']}: {read['message']}"
        for read in reads
        if read["outcome"] == "fault"
    ]


@pytest.fixture(scope="session")
def all_reads(fuzz, tmp_path_factory):
    """Of one process: most of the time goes into its start."""
    tasks = [(reader, 0, 6) for reader in fuzz.READERS]
    tasks.append(("hostile", 0, fuzz.HOSTILE))
    return fuzz.run(tmp_path_factory.mktemp("reads"), tasks)


def test_a_hundred_damaged_files(fuzz, all_reads):
    reads = [read for read in all_reads if read["reader"] != "hostile"]
    assert len(reads) == 6 * len(fuzz.READERS) > 100
    assert faults(reads) == []
    assert {read["outcome"] for read in reads} == {"read", "refused"}


@pytest.mark.slow
def test_a_thousand_damaged_files(fuzz, tmp_path):
    tasks = [(reader, 10_000, PER_READER) for reader in fuzz.READERS]
    reads = fuzz.run(tmp_path, tasks)
    assert len(reads) == PER_READER * len(fuzz.READERS) > 1000
    assert faults(reads) == []


def test_hostile_files(all_reads):
    reads = [read for read in all_reads if read["reader"] == "hostile"]
    assert {read["of"] for read in reads} == {len(reads)}
    wrong = []
    for read in reads:
        expected = "read" if read["wanted"] == "read" else "refused"
        told = expected == "read" or re.search(read["wanted"], read["message"])
        if read["outcome"] != expected or not told:
            wrong.append(f"{read['case']}: {read['outcome']}: {read['message']}")
    assert wrong == []


def test_damage_depends_on_the_seed_alone(script):
    mutated = script(HERE / "mutations.py").mutated
    content, other = b'{"a": 1}' * 99, b'{"b": 2}' * 99
    results = [mutated(content, other, random.Random(f"{i}")) for i in range(50)]
    again = [mutated(content, other, random.Random(f"{i}")) for i in range(50)]
    assert results == again
    assert len(set(results)) > 40


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import time; time.sleep(60)", "no end after"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_a_read_that_ends_the_process_is_a_fault_of_its_own(
    fuzz, tmp_path, monkeypatch, code, why
):
    """The process answers for every number but 1."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "for reader, number, _ in json.load(open(sys.argv[2])):\n"
        f"    if number == 1:\n        {code}\n"
        "    told = {'reader': reader, 'number': number, 'outcome': 'read'}\n"
        "    print(json.dumps(told), flush=True)\n"
    )
    monkeypatch.setattr(fuzz, "WORKER", worker)
    monkeypatch.setattr(fuzz, "PATIENCE", 0.5)
    reads = fuzz.run(tmp_path, [("idx", 0, 4)])
    assert [read["number"] for read in reads] == [0, 1, 2, 3]
    assert [read["outcome"] for read in reads] == ["read", "fault", "read", "read"]
    assert why in reads[1]["message"]


def test_the_table_is_the_report(script):
    study = HERE.parents[1] / "benchmarks" / "robustness"
    rows = json.loads((study / "report.json").read_text(encoding="utf-8"))["rows"]
    table = (study / "table.md").read_text(encoding="utf-8")
    assert table == script(study / "run.py").table(rows)
    assert sum(row["inputs"] for row in rows) >= 1000
    assert sum(row["faults"] for row in rows) == 0
