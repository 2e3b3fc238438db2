"""The zoos of the study: members to learn from, and draws of members never seen.

Command: .venv/bin/python benchmarks/weightformer_small/zoos.py CIFAR10 WORK \
    [--scale small] [--regimes one-start unequal independent]
Members that are there are kept. About 50 minutes of one core for all three.
"""

import argparse
from pathlib import Path

import torch
from scales import REGIMES, SCALES, Scale

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.teachers import Member, load_member
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.teach import Knowledge, teach_member


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if scale.device == "cpu":
        torch.set_num_threads(1)
    for regime in options.regimes:
        with RunLog(quiet=True) as log:
            session = open_study(options.cifar10, options.work, log, scale)
            teach(session, options.work, regime, scale)


def open_study(cifar10: str, work: Path, log: RunLog, scale: Scale) -> Session:
    """Return the session of the study; images beyond the labelled ones lose labels."""
    data = load_data(
        cifar10, limit_train=scale.limit_train, augment="flip", unlabelled=True
    )
    running = RunOptions(seed=0, device=scale.device, cache=work / "cache")
    return open_session(running, data, None, log)


def folders(work: Path, regime: str, scale: Scale) -> tuple[Path, list[Path]]:
    """Return the folders of the zoo, and of each draw of unseen members."""
    base = work / regime
    return base / "zoo", [base / f"unseen-{draw}" for draw in range(scale.draws)]


def teach(session: Session, work: Path, regime: str, scale: Scale) -> None:
    """Teach the members of a regime."""
    zoo, draws = folders(work, regime, scale)
    start = None if regime == "independent" else _start(session, work, scale)
    method = scale.fine_tune if start else scale.alone
    groups = ((zoo, scale.zoo), *((draw, scale.unseen) for draw in draws))
    for folder, count in groups:
        first = 0 if folder == zoo else 1000 * (1 + draws.index(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / f"member-{first + number:04d}.safetensors"
            if path.exists():
                continue
            factor = scale.rates[number % len(scale.rates)] if start else 1.0
            rate = method.learning_rate * factor
            member = teach_member(
                session.reseeded(first + number),
                path,
                architecture=scale.architecture,
                method=method.model_copy(update={"learning_rate": rate}),
                start=start,
                knowledge=scale.knowledge[regime],
                command="python benchmarks/weightformer_small/zoos.py",
            )
            accuracy = member.info.metrics["validation"]["accuracy"]
            print(f"{regime} {path.name}: {accuracy:.3f}", flush=True)


def _start(session: Session, work: Path, scale: Scale) -> Member:
    path = work / "start.safetensors"
    if path.exists():
        return load_member(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return teach_member(
        session.reseeded(9999),
        path,
        architecture=scale.architecture,
        method=scale.start,
        knowledge=Knowledge(subset=0.5),
    )


if __name__ == "__main__":
    main()
