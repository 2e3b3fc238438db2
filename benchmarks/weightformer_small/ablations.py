"""What each part of the WeightFormer is worth: one change at a time.

Command: .venv/bin/python benchmarks/weightformer_small/ablations.py CIFAR10 WORK \
    [--regimes unequal one-start] [--only NAME...]
First: benchmarks/weightformer_small/zoos.py CIFAR10 WORK.
Everything is measured on four members that are held out of the zoo, on validation; test
data play no part. Some 25 minutes of one core per regime; rows that are not named stay.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from scales import SMALL
from zoos import folders, open_study

from metaensemble.core.files import write_json, write_text
from metaensemble.engine import RunLog, evaluate
from metaensemble.methods import WeightFormerMethod
from metaensemble.metrics import kl_to
from metaensemble.teachers import Ensemble, load_ensemble
from metaensemble.workflows.conditioning import conditioning
from metaensemble.workflows.learning import learn_predictor
from metaensemble.workflows.options import Session
from metaensemble.workflows.predicting import predicted_student

HERE = Path(__file__).parent
HELD_OUT = 4
BASE: dict[str, Any] = {
    "head": "mixture",
    "readout": "pooled",
    "reference": "mean",
    "attention": "full",
    "width": 64,
    "depth": 2,
    "gain": 0.02,
    "epochs": 1.5,
    "views": 1,
    "learning_rate": 1e-3,
}
"""What is changed, one part at a time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "without [cross] flow": {"cross": False},
    "without shift consistency": {"shift_weight": 0.0},
    "axial attention": {"attention": "axial"},
    "readout of the first teacher": {"readout": "first"},
    "direct head": {"head": "direct"},
    "residual head": {"head": "residual"},
    "residual head, gain .3": {"head": "residual", "gain": 0.3},
    "residual head, gain .3, centred": {
        "head": "residual",
        "gain": 0.3,
        "centre": True,
    },
    "mixture alone": {"gain": 0.0},
    "with an offset": {"offset": True},
    "with an offset, gain .3": {"offset": True, "gain": 0.3},
    "with data tokens": {"data_tokens": 512},
    "learned soup as reference": {"reference": "learned_soup", "pool": 20},
    "teachers brought to one order": {"align": "always"},
    "width 32": {"width": 32},
    "width 128": {"width": 128},
    "depth 1": {"depth": 1},
    "six training members": {"members": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--regimes", nargs="+", default=["unequal", "one-start"])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "ablations.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for regime in options.regimes:
        with RunLog(quiet=True) as log:
            session = open_study(options.cifar10, options.work, log, SMALL)
            zoo = load_ensemble(
                [folders(options.work, regime, SMALL)[0]], data=session.data
            )
            for name in options.only:
                row = {
                    "regime": regime,
                    "variant": name,
                    **measured(session, zoo, name),
                }
                print(json.dumps(row), flush=True)
                rows = [
                    r for r in rows if (r["regime"], r["variant"]) != (regime, name)
                ]
                rows.append(row)
                write_json(path, rows)
    order = list(VARIANTS)
    rows.sort(key=lambda r: (r["regime"], order.index(r["variant"])))
    write_json(path, rows)
    write_text(HERE / "ablations.md", table(rows))


def measured(session: Session, zoo: Ensemble, name: str) -> dict[str, Any]:
    """Train one variant and measure it on the members held out."""
    fields = {**BASE, **VARIANTS[name]}
    members = fields.pop("members", len(zoo) - HELD_OUT)
    unseen = range(len(zoo) - HELD_OUT, len(zoo))
    chosen = zoo.subset([*range(members), *unseen])
    method = WeightFormerMethod(**fields, tune_epochs=0)
    began = time.monotonic()
    learnt = learn_predictor(
        session, chosen, method, teachers=(4, 4), hold_out=HELD_OUT
    )
    seconds = time.monotonic() - began
    audience = zoo.subset(unseen)
    split = session.data.validation
    target = audience.log_probs(session.cache.ensemble_logits(audience, split))
    figures: dict[str, Any] = {"learn_seconds": round(seconds, 1)}
    began = time.monotonic()
    for stage, step in (("reference", 0.0), ("predicted", 1.0)):
        student = predicted_student(session, audience, learnt.predictor, step=step)
        result = evaluate(student.network, student.info.normalization, split, "cpu")
        figures[f"{stage}_kl"] = kl_to(target, result.log_probs)
        figures[f"{stage}_accuracy"] = result.measured.accuracy
    seen = zoo.subset(range(4))
    heard = conditioning(session, learnt.predictor, [audience, seen])
    figures["reading_gain"] = heard["reading_gain"]
    figures["parameters"] = sum(
        p.numel() for p in learnt.predictor.network.parameters()
    )
    figures["history"] = [round(row["objective"], 5) for row in learnt.student.history]
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables, one per regime."""
    text = ""
    for regime in dict.fromkeys(row["regime"] for row in rows):
        text += f"### {regime}\n\n"
        text += (
            "| variant | KL, reference | KL, predicted | accuracy, reference (%) | "
            "accuracy, predicted (%) | reading gain | parameters (k) | learning (s) |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        )
        for row in rows:
            if row["regime"] == regime:
                accuracies = [
                    f"{100 * row[f'{stage}_accuracy']:.1f}"
                    for stage in ("reference", "predicted")
                ]
                text += (
                    f"| {row['variant']} | {row['reference_kl']:.4f} | "
                    f"{row['predicted_kl']:.4f} | {' | '.join(accuracies)} | "
                    f"{row['reading_gain']:+.4f} | {row['parameters'] / 1e3:.0f} | "
                    f"{row['learn_seconds']:.0f} |\n"
                )
        text += "\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    main()
