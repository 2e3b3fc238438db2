"""The studies: what each runs in the CPU tier, and how long it takes.

The commands are lines for a shell in a copy of this folder; {python}, {data} (CIFAR-10,
in any layout that --data takes) and {work} (a folder of the study's own) are filled in.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One study under benchmarks/."""

    name: str
    """Its folder."""
    minutes: int
    """Of one core, for what the CPU tier runs of it; on an idle machine."""
    commands: tuple[str, ...]
    """Of the CPU tier, one after the other; none: the long tier alone."""
    alone: bool = False
    """It measures time, with two threads: nothing may run beside it."""
    part: str = ""
    """What the CPU tier runs, where that is not the whole study."""
    hours: float = 0.0
    """Of one core, for the whole study, where the CPU tier runs a part or nothing."""

    @property
    def needs_data(self) -> bool:
        """Return whether CIFAR-10 is needed."""
        return any("{data}" in command for command in self.commands)


ENTRIES = (
    Entry("digits", 13, ("{python} digits/run.py",)),
    Entry("auto", 5, ("{python} auto/run.py",), part="the digits", hours=3.0),
    Entry("multiview", 8, ("{python} multiview/run.py --out multiview",)),
    Entry("mlp_depth", 3, ("{python} mlp_depth/run.py",)),
    Entry("robustness", 2, ("{python} robustness/run.py",)),
    Entry(
        "merging",
        20,
        ("{python} merging/run.py {data} {work} --seeds 0",),
        part="the first zoo",
        hours=0.9,
    ),
    Entry("soups", 13, ("{python} soups/run.py {data} {work}",)),
    Entry(
        "weightformer_small",
        42,
        (
            "{python} weightformer_small/zoos.py {data} {work} --regimes one-start",
            "{python} weightformer_small/run.py {data} {work} --regimes one-start",
            "{python} weightformer_small/summary.py",
        ),
        part="the regime one-start",
        hours=2.6,
    ),
    Entry(
        "online_small",
        18,
        (
            "{python} online_small/run.py {data} {work} --seeds 0",
            "{python} online_small/run.py {data} {work} --collect",
        ),
        part="the first seed",
        hours=1.0,
    ),
    Entry("cifar10_small", 21, ("cifar10_small/run.sh {data} {work}",)),
    Entry(
        "distillation_small",
        10,
        (
            "{python} distillation_small/run.py {data} {work} --seeds 0 --only "
            "best_member kd kd-t4 dkd meal_v2 cc sp meal ensemble_distribution",
            "{python} distillation_small/run.py {data} {work} --collect",
        ),
        part="the first zoo, nine methods",
        hours=3.0,
    ),
    Entry("ot", 40, (), hours=0.7),
    Entry("alignment", 10, (), hours=0.2),
    Entry("resume", 25, (), hours=0.4),
    Entry("distillation_speed", 3, ("{python} distillation_speed/run.py",), alone=True),
    Entry("running", 5, ("{python} running/run.py",), alone=True),
    Entry("prediction", 13, ("{python} prediction/run.py --work {work}",), alone=True),
    Entry("profile", 5, ("{python} profile/run.py --work {work}",), alone=True),
    Entry("scaling", 4, ("{python} scaling/run.py --work {work}",), alone=True),
    Entry("rivals", 13, ("{python} rivals/run.py --work {work}",), alone=True),
    Entry(
        "published",
        0,
        ("{python} published/run.py",),
        alone=True,
        part="where it has two seeds",
    ),
)
"""Those that run alone do so in this order; the last two read others' reports."""
