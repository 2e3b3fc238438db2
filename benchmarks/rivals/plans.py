"""Transport plans between channels: ours of whole channels, and POT's exact ones.

A case's folder holds cost.npy, float64 (theirs, mine). Where one width divides the
other, both solve one problem; where not, ours divides no channel of the wider network,
which POT's does. Plans that are called exact and sinkhorn in `ot_fusion` are POT's own
functions, so there is nothing to compare.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Row, measured, row
from worker import main, timed

CASES = {
    "64 x 64": (64, 64),
    "128 x 128": (128, 128),
    "256 x 256": (256, 256),
    "512 x 512": (512, 512),
    "1024 x 1024": (1024, 1024),
    "2048 x 2048": (2048, 2048),
    "512 x 256": (512, 256),
    "48 x 32": (48, 32),
}
"""Channels of the other network and of the reference."""
DEPTH = 64
"""Numbers per channel, of which the cost is the Euclidean distance."""
REPEATS = 3
ITERATIONS = 10_000_000
"""Of POT at most; its own default, 100,000, does not suffice for 2048 channels."""


def ours(folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from metaensemble.alignment.plans import Solver

    cost = torch.from_numpy(np.load(folder / "cost.npy"))
    seconds, plan = timed(lambda: Solver(kind="whole").plan(cost))
    np.save(folder / "metaensemble.npy", plan.numpy())
    return {"seconds": seconds, "warnings": []}


def pot(folder: Path) -> dict[str, Any]:
    import numpy as np
    import ot

    cost = np.load(folder / "cost.npy")
    theirs, mine = (np.full(count, 1 / count) for count in cost.shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ot.emd(theirs, mine, cost)
        said = sorted({str(each.message)[:100] for each in caught})
        seconds, plan = timed(lambda: ot.emd(theirs, mine, cost, numItermax=ITERATIONS))
    np.save(folder / "pot.npy", plan)
    return {"seconds": seconds, "warnings": said}


def prepare(name: str, folder: Path) -> None:
    """Write the distances between rows of two random matrices."""
    import numpy as np
    import torch

    from metaensemble.core.seeds import generator

    random = generator(name, "rivals")
    first, second = (
        torch.randn(count, DEPTH, generator=random, dtype=torch.float64)
        for count in CASES[name]
    )
    np.save(folder / "cost.npy", torch.cdist(first, second).numpy())


def judge(folder: Path) -> dict[str, float]:
    """Return the cost of both plans, and how far apart they are, in channels."""
    import numpy as np

    cost, mine, theirs = (
        np.load(folder / f"{name}.npy") for name in ("cost", "metaensemble", "pot")
    )
    return {
        "ours_cost": float((mine * cost).sum()),
        "theirs_cost": float((theirs * cost).sum()),
        "apart": float(np.abs(mine - theirs).max() * max(cost.shape)),
    }


def rows(rig: Any) -> Iterator[Row]:
    """Yield the rows of all widths."""
    rival = rig.rival("pot", "POT")
    for case, (other, reference) in CASES.items():
        folder = rig.folder("plans", case)
        prepare(case, folder)
        ours, theirs = rig.turns("plans", folder, rival, REPEATS)
        head = ("plans", "POT", rival.version, case)
        found = judge(folder)
        one_problem = other % reference == 0
        note = ""
        if not one_problem:
            note = f"{case}: ours divides no channel of the wider network, which is "
            note += "another problem than POT's."
        said = [text for run in theirs for text in run["warnings"]]
        if said:
            note = f"{case}: POT got {ITERATIONS:,} iterations; with its default it "
            note += f"says: {said[0]}"
        yield row(
            *head,
            "cost of the plan"
            + (" (one plan)" if found["apart"] < 1e-9 else " (two plans)"),
            found["ours_cost"],
            found["theirs_cost"],
            "cost",
            better="lower" if one_problem else None,
            tolerance=1e-9,
            note=note,
            apart=found["apart"],
        )
        runs = ([run["seconds"] for run in side] for side in (ours, theirs))
        yield measured(*head, "processor seconds of the plan", *runs, "s")


if __name__ == "__main__":
    main({"metaensemble": ours, "pot": pot})
