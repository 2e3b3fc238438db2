"""The study in one small table per regime, from its reports.

Command: .venv/bin/python benchmarks/weightformer_small/summary.py
It reads REGIME/report.json and writes REGIME/summary.md.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from metaensemble.report import Report, read_reports

HERE = Path(__file__).parent
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def main() -> None:
    for path in sorted(HERE.glob("*/report.json")):
        text = summary(read_reports(path))
        (path.parent / "summary.md").write_text(text, encoding="utf-8")


def label(row: Report) -> str:
    """Return what a student is, in words."""
    method = row.method
    images = row.cost.train_images or 0
    if method["name"] == "kd":
        return f"kd from {method['start']}, {images / 1e3:.0f} k images"
    if method["name"] != "weightformer":
        return str(method["name"])
    kind = "reader" if method["head"] == "mixture" else "memory"
    text = f"WeightFormer ({kind}), "
    text += "one pass" if method["refine"] == "none" else f"+ {method['refine']}"
    if row.stage == "tuned":
        passes = method["tune_epochs"] * 49_000
        text += f", tuned on {passes / 1e3:.0f} k images"
    return text


def summary(rows: Sequence[Report]) -> str:
    """Return the Markdown table of a regime, best headroom first."""
    groups: defaultdict[str, list[Report]] = defaultdict(list)
    for row in rows:
        groups[label(row)].append(row)
    ordered = sorted(groups.items(), key=lambda item: -mean_headroom(item[1]))
    first = next(iter(groups.values()))
    whole = told([100 * row.ensemble.test.accuracy for row in first], 1)
    mean = told([100 * row.mean_teacher.test.accuracy for row in first], 1)
    lines = [
        "| student | accuracy (%) | headroom (%) | KL to the ensemble | gain | "
        "reading gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| ensemble | {whole} | 100 | 0 | - | - |",
        f"| mean member | {mean} | 0 | - | - | - |",
    ]
    for name, group in ordered:
        heard = group[0].conditioning or {}
        reading = "-"
        if "reading_gain" in heard:
            error = heard.get("reading_error", 0.0)
            reading = f"{heard['reading_gain']:.4f} {PLUS_MINUS} {error:.4f}"
        cells = [
            name,
            told([100 * row.student.test.accuracy for row in group], 1),
            told([100 * (row.headroom.recovered or 0) for row in group], 0),
            told([row.fidelity.kl for row in group], 4),
            f"{heard['gain']:.4f} {PLUS_MINUS} {heard.get('gain_error', 0):.4f}",
            reading,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"*On test, mean {PLUS_MINUS} standard error over draws; gain: KL to the other "
        "draws' ensembles minus that to its own, in nats, on validation; reading gain: "
        "what is lost if the reference stays and the Transformer reads another draw's "
        "teachers. Images are those of the last training.*",
    ]
    return "\n".join(lines) + "\n"


def mean_headroom(rows: Sequence[Report]) -> float:
    """Return the mean share of the headroom."""
    return fmean(row.headroom.recovered or 0 for row in rows)


def told(values: Sequence[float], digits: int) -> str:
    """Return mean and standard error."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.{digits}f} {PLUS_MINUS} {error:.{digits}f}"


if __name__ == "__main__":
    main()
