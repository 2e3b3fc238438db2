"""The table of the benchmark is what its report says."""

import json
from pathlib import Path

STUDY = Path(__file__).parents[2] / "benchmarks" / "alignment"


def test_the_table_is_the_report(script):
    run = script(STUDY / "run.py")
    rows = json.loads((STUDY / "report.json").read_text(encoding="utf-8"))["rows"]
    assert (STUDY / "table.md").read_text(encoding="utf-8") == run.table(rows)
    done = [row for row in rows if row["status"] == "ok"]
    assert all(
        row["logits_changed_by"] < 1e-9 for row in done if row["tool"] == "metaensemble"
    )
