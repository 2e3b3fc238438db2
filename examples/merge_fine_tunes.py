"""Merge three fine-tunes without training: python examples/merge_fine_tunes.py.

Members that share a start often lie in one basin of the loss, where a mean of weights
is a network as good as any of them, or better. No gradient is taken.
"""

import tempfile
from pathlib import Path

import metaensemble as me
from metaensemble.cli import main as metaensemble

DATA = "--data digits --limit-train 300 --architecture convnet,width=16 --quiet"


def teach(flags: str) -> None:
    """Run the command that trains networks."""
    if metaensemble(["teach", *DATA.split(), *flags.split()]):
        raise SystemExit(2)


def main() -> None:
    """Train a start, fine-tune it three times, and compare ways to merge."""
    with tempfile.TemporaryDirectory() as temporary:
        start, zoo = Path(temporary) / "start", Path(temporary) / "zoo"
        teach(f"--members 1 --epochs 15 --out {start}")
        (common,) = start.glob("*.safetensors")
        teach(f"--start {common} --members 3 --subset 0.3 --epochs 10 --out {zoo}")

        data = me.load_data("digits", limit_train=300)
        ensemble = me.load_ensemble([zoo], data=data)
        for method in ("best_member", "soup", "greedy_soup", "learned_soup"):
            report = me.fuse(ensemble, data, method).report
            if method == "best_member" and report.diagnosis is not None:
                print(*report.diagnosis.lines, sep="\n")
            print(
                f"{method:<12} {100 * report.student.test.accuracy:.1f} %, ensemble "
                f"{100 * report.ensemble.test.accuracy:.1f} %, mean member "
                f"{100 * report.mean_teacher.test.accuracy:.1f} %"
            )


if __name__ == "__main__":
    main()
