"""Does the predictor listen? Conditioning over more ensembles than the study's draws.

Command: .venv/bin/python benchmarks/weightformer_small/listening.py CIFAR10 WORK
After run.py. The twelve unseen members of a regime make six pairs; with three ensembles
of four, as in the study, the error of a heavy-tailed mean is hardly known. Measured on
validation; writes listening.json.
"""

import argparse
from pathlib import Path

import torch
from scales import SMALL
from zoos import folders, open_study

from metaensemble.core.files import write_json
from metaensemble.engine import RunLog
from metaensemble.teachers import load_ensemble
from metaensemble.weightformer import load_predictor
from metaensemble.workflows.conditioning import conditioning, disjoint

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--regimes", nargs="+", default=["unequal", "one-start"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with RunLog(quiet=True) as log:
        session = open_study(options.cifar10, options.work, log, SMALL)
        for regime in options.regimes:
            _, draws = folders(options.work, regime, SMALL)
            unseen = load_ensemble(draws, data=session.data)
            for name in SMALL.generators[regime]:
                predictor = load_predictor(
                    options.work / f"{regime}-{name}.safetensors"
                )
                found = conditioning(session, predictor, disjoint(unseen, 2))
                row = {"regime": regime, "predictor": name, "teachers": 2, **found}
                print(row, flush=True)
                rows.append(row)
    write_json(HERE / "listening.json", rows)


if __name__ == "__main__":
    main()
