"""The zoos of the study: 16 members to learn from, three times four never seen.

Command: .venv/bin/python benchmarks/weightformer_small/zoos.py CIFAR10 WORK \
    [--regimes one-start unequal independent]
Members that are there are kept. About 50 minutes of one core for all three.
"""

import argparse
from pathlib import Path

import torch

from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.methods import Supervised
from metaensemble.teachers import Member, load_member
from metaensemble.workflows.options import RunOptions, Session, open_session
from metaensemble.workflows.teach import Knowledge, teach_member

ARCHITECTURE = "convnet,width=32"
"""132 thousand parameters."""
ZOO = 16
DRAWS = 3
UNSEEN = 4
START = Supervised(epochs=10, learning_rate=0.1)
"""The common start, on half of the labelled images."""
RATES = (0.05, 0.1, 0.2)
"""Of the fine-tunes, in turn."""
KNOWLEDGE = {
    "one-start": Knowledge(subset=0.2),
    "unequal": Knowledge(subset=0.5, classes_each=5),
    "independent": Knowledge(subset=0.5),
}
"""By regime: what each member sees of the 9,000 labelled images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10")
    parser.add_argument("work", type=Path)
    parser.add_argument("--regimes", nargs="+", default=list(KNOWLEDGE))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for regime in options.regimes:
        with RunLog(quiet=True) as log:
            session = open_study(options.cifar10, options.work, log)
            teach(session, options.work, regime)


def open_study(cifar10: str, work: Path, log: RunLog) -> Session:
    """Return the session of the study: 9,000 labelled images, 40,000 without labels."""
    data = load_data(cifar10, limit_train=10_000, augment="flip", unlabelled=True)
    running = RunOptions(seed=0, device="cpu", cache=work / "cache")
    return open_session(running, data, None, log)


def folders(work: Path, regime: str) -> tuple[Path, list[Path]]:
    """Return the folders of the zoo, and of each draw of unseen members."""
    base = work / regime
    return base / "zoo", [base / f"unseen-{draw}" for draw in range(DRAWS)]


def teach(session: Session, work: Path, regime: str) -> None:
    """Teach the members of a regime."""
    zoo, draws = folders(work, regime)
    start = None if regime == "independent" else _start(session, work)
    for folder, count in ((zoo, ZOO), *((draw, UNSEEN) for draw in draws)):
        first = 0 if folder == zoo else 1000 * (1 + draws.index(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / f"member-{first + number:04d}.safetensors"
            if path.exists():
                continue
            rate = 0.1 if start is None else RATES[number % len(RATES)]
            member = teach_member(
                session.reseeded(first + number),
                path,
                architecture=ARCHITECTURE,
                method=Supervised(epochs=10 if start else 20, learning_rate=rate),
                start=start,
                knowledge=KNOWLEDGE[regime],
                command="python benchmarks/weightformer_small/zoos.py",
            )
            accuracy = member.info.metrics["validation"]["accuracy"]
            print(f"{regime} {path.name}: {accuracy:.3f}", flush=True)


def _start(session: Session, work: Path) -> Member:
    path = work / "start.safetensors"
    if path.exists():
        return load_member(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return teach_member(
        session.reseeded(9999),
        path,
        architecture=ARCHITECTURE,
        method=START,
        knowledge=Knowledge(subset=0.5),
    )


if __name__ == "__main__":
    main()
