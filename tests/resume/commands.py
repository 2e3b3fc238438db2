"""Commands that train, small enough to be killed fifty times, and what they need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BOTH = (1, 2)
SHORT = "--data digits --limit-train 100 --batch-size 16 --checkpoint-steps 10 --quiet"
NETWORK = "convnet,width=4"
TINY = "--width 8 --heads 1 --depth 1 --dropout 0.2"
DATA = "--data digits --limit-train 100 --batch-size 16 --quiet"
INPUTS = (
    f"teach {DATA} --architecture {NETWORK} --members 3 --epochs 2 --out zoo",
    f"teach {DATA} --architecture mlp,width=8 --members 1 --epochs 2 --out first",
    f"teach {DATA} --architecture mlp,width=8 --members 5 --epochs 2 --seed 10 "
    "--start first/member-0000.safetensors --out family",
    f"learn-weightformer family {DATA} --teachers 2 2 {TINY} --hold-out 2 --epochs 1 "
    "--out wf.safetensors",
)
"""Make what the commands read; run in its folder."""


@dataclass(frozen=True)
class Command:
    """A command line; ``{inputs}`` stands for the folder that `INPUTS` filled."""

    line: str
    out: str = "run"
    """What it makes."""
    folder: str = "run"
    """The folder that grows meanwhile."""
    processes: tuple[int, ...] = BOTH
    """How many may run it: a method with a memory of what it saw is for one."""

    def arguments(self, inputs: Path) -> list[str]:
        """Return the arguments."""
        return f"{self.line.format(inputs=inputs)} --out {self.out}".split()


def _fuse(method: str, options: str, members: str = "{inputs}/zoo ") -> str:
    return f"fuse {members}--method {method} {SHORT} {options}"


def _grow(method: str, options: str) -> str:
    return _fuse(method, f"--student {NETWORK} {options}", members="")


COMMANDS = {
    "teach": Command(f"teach {SHORT} --architecture {NETWORK} --members 3 --epochs 40"),
    "teach from a start": Command(
        f"teach {SHORT} --architecture mlp,width=8 --members 3 --epochs 60 "
        "--optimizer adamw --subset 0.8 --start {inputs}/first/member-0000.safetensors"
    ),
    "kd": Command(_fuse("kd", "--start scratch --views 2 --epochs 60")),
    "kd, perturbed": Command(_fuse("kd", "--perturbation tdiv_sdiv --epochs 15")),
    "latent_ensemble": Command(_fuse("latent_ensemble", "--epochs 40")),
    "srm": Command(_fuse("srm", "--dictionary-epochs 10 --init-epochs 10 --epochs 30")),
    "weightformer": Command(
        _fuse("weightformer", f"{TINY} --epochs 15 --tune-epochs 15")
    ),
    "crd": Command(_fuse("crd", "--epochs 40"), processes=(1,)),
    "blockwise": Command(_fuse("blockwise", "--epochs 30"), processes=(1,)),
    "regression_merge": Command(
        "fuse {inputs}/zoo --method regression_merge --data digits --limit-train 900 "
        "--quiet"
    ),
    "one": Command(_grow("one", "--epochs 40")),
    "student_ensemble": Command(_grow("student_ensemble", "--epochs 30")),
    "self_distillation": Command(_grow("self_distillation", "--epochs 25")),
    "learn-weightformer": Command(
        f"learn-weightformer {{inputs}}/family {SHORT} --teachers 2 2 {TINY} "
        "--hold-out 2 --epochs 25",
        out="wf.safetensors",
        folder="wf-training",
    ),
    "predict": Command(
        "predict {inputs}/family --predictor {inputs}/wf.safetensors --data digits "
        "--limit-train 100 --quiet --checkpoint-steps 10 --tune-epochs 60",
    ),
}


def make_inputs(folder: Path, run: Callable[[Sequence[str]], None]) -> Path:
    """Fill `folder` with what the commands read, once, and return it.

    Args:
        folder: where.
        run: runs a command of one process, in the folder.
    """
    if not (folder / "wf.safetensors").exists():
        folder.mkdir(parents=True)
        for line in INPUTS:
            run(line.split())
    return folder
