"""The WeightFormer study runs, at its smallest size."""

import subprocess
import sys
from pathlib import Path

import pytest

from metaensemble.report import read_reports

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "weightformer_small"


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["one-start", "unequal", "independent"])
def test_the_study_runs(tmp_path: Path, regime: str):
    for script, more in (("zoos.py", []), ("run.py", ["--out", str(tmp_path / "out")])):
        words = ["digits", str(tmp_path / "work"), "--scale", "smoke"]
        command = [sys.executable, str(FOLDER / script), *words, "--regimes", regime]
        subprocess.run([*command, *more], check=True, timeout=600)
    rows = read_reports(tmp_path / "out" / regime)
    assert {row.draw for row in rows} == {0, 1}
    predicted = [row for row in rows if row.stage == "predicted"]
    assert {row.method["refine"] for row in predicted} != {"none"}
    for row in rows:
        assert row.conditioning is not None
        assert row.conditioning["ensembles"] == 2
    assert any("reading_gain" in (row.conditioning or {}) for row in predicted)
