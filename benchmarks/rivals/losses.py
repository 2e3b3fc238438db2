"""Values and gradients of distillation losses, of one teacher: ours, torchdistill's.

A case's folder holds inputs.safetensors: logits, labels, a feature map and a vector of
a student and a teacher.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Row, absent, row
from worker import main

TEMPERATURE, LABELS = 4.0, 0.1
CASES = ("kd", "sp", "at", "rkd")
SAME = 1e-5
"""Values are the same up to this share: float32, summed in another order."""
DISTANCES, ANGLES = 25.0, 50.0


def ours(folder: Path) -> dict[str, Any]:
    import torch
    from torch import nn

    from metaensemble.methods import KD
    from metaensemble.methods.at import AttentionLoss
    from metaensemble.methods.contract import Batch
    from metaensemble.methods.features import Features
    from metaensemble.methods.rkd import RelationLoss
    from metaensemble.methods.sp import SimilarityLoss

    own, teacher, labels = _inputs(folder)
    images = torch.zeros(len(labels), 1, 1, 1)
    batch = Batch(0, images, labels, teacher["logits"][None])

    class Answers(nn.Module):
        def forward(self, _: Any) -> Any:
            return own["logits"]

    kd = KD(temperature=TEMPERATURE, label_weight=LABELS).learner(Answers(), None)

    def features(side: dict[str, Any]) -> Features:
        return Features((side["map"],), side["vector"], side["logits"])

    def matched(loss: nn.Module) -> Any:
        return loss(features(own), features(teacher), batch)

    losses = {
        "kd": sum(kd(batch).values()),
        "sp": matched(SimilarityLoss([0])),
        "at": matched(AttentionLoss()),
        "rkd": matched(RelationLoss(DISTANCES, ANGLES)),
    }
    return _written(folder / "metaensemble.safetensors", losses, own)


def torchdistill(folder: Path) -> dict[str, Any]:
    from torchdistill.losses.mid_level import ATLoss, KDLoss, RKDLoss, SPKDLoss

    own, teacher, labels = _inputs(folder)
    student_io, teacher_io = (
        {name: {"output": tensor} for name, tensor in side.items()}
        for side in (own, teacher)
    )
    place = {"io": "output", "path": "map"}
    pairs = {"one": {"student": place, "teacher": place, "weight": 1}}
    made = {
        "kd": KDLoss("logits", "output", "logits", "output", TEMPERATURE, alpha=LABELS),
        "sp": SPKDLoss("map", "map", "batchmean"),
        "at": ATLoss(pairs, mode="code"),
        "rkd": RKDLoss("vector", "vector", DISTANCES, ANGLES, "mean"),
    }
    losses = {name: loss(student_io, teacher_io, labels) for name, loss in made.items()}
    return _written(folder / "torchdistill.safetensors", losses, own)


NOTES = {
    "sp": "sp: torchdistill divides rows by their 1-norm (it hands 1 to PyTorch's "
    "`normalize` as p), the paper and ours by their 2-norm; with p = 1 ours gives its "
    "value (`p1` in the report's row).",
}
READ = {"kd": "logits", "sp": "map", "at": "map", "rkd": "vector"}
"""Of what a loss has a gradient."""


def _inputs(folder: Path) -> Any:
    from safetensors.torch import load_file

    tensors = load_file(folder / "inputs.safetensors")
    sides = []
    for side in ("student", "teacher"):
        names = ("logits", "map", "vector")
        sides.append({name: tensors[f"{side}.{name}"] for name in names})
    for tensor in sides[0].values():
        tensor.requires_grad_()
    return *sides, tensors["labels"]


def _written(file: Path, losses: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the values, having written the gradients."""
    import torch
    from safetensors.torch import save_file

    gradients = {
        name: torch.autograd.grad(loss, own[READ[name]])[0].contiguous()
        for name, loss in losses.items()
    }
    save_file(gradients, file)
    return {"values": {name: float(loss) for name, loss in losses.items()}}


def prepare(folder: Path) -> None:
    """Write random features; the teacher's are the student's and as much noise."""
    import torch
    from safetensors.torch import save_file

    from metaensemble.core.seeds import generator

    random = generator("losses", "rivals")
    shapes = {"logits": (64, 100), "map": (64, 32, 8, 8), "vector": (64, 128)}
    tensors = {"labels": torch.randint(100, (64,), generator=random)}
    for name, shape in shapes.items():
        student, noise = (torch.randn(shape, generator=random) for _ in range(2))
        tensors |= {f"student.{name}": student, f"teacher.{name}": student + noise}
    save_file(tensors, folder / "inputs.safetensors")


def judge(folder: Path) -> dict[str, float]:
    """Return the largest difference of gradients, against the largest of ours."""
    from safetensors.torch import load_file

    mine = load_file(folder / "metaensemble.safetensors")
    theirs = load_file(folder / "torchdistill.safetensors")
    return {
        name: float((mine[name] - theirs[name]).abs().max() / mine[name].abs().max())
        for name in CASES
    }


def similarity(folder: Path) -> float:
    """Return the loss of similarities whose rows are divided by their 1-norm."""
    import torch.nn.functional as F

    own, teacher, labels = _inputs(folder)
    first, second = (
        F.normalize(side["map"].flatten(1) @ side["map"].flatten(1).T, p=1, dim=1)
        for side in (own, teacher)
    )
    return float((first - second).square().sum().detach() / len(labels) ** 2)


def rows(rig: Any) -> Iterator[Row]:
    """Yield a row per loss, and why KD_Lib has none."""
    rival = rig.rival("torchdistill")
    folder = rig.folder("losses", "all")
    prepare(folder)
    (ours,), (theirs,) = rig.turns("losses", folder, rival, 1)
    apart = judge(folder)
    for name in CASES:
        mine, its = ours["values"][name], theirs["values"][name]
        yield row(
            "losses",
            "torchdistill",
            rival.version,
            name,
            f"value (gradients apart by {apart[name]:.0e} of the largest)",
            mine,
            its,
            "",
            tolerance=SAME * abs(its),
            note=NOTES.get(name, ""),
            gradients_apart=apart[name],
            **({"p1": similarity(folder)} if name == "sp" else {}),
        )
    try:
        rig.rival("kd-lib", "KD-Lib")
    except RuntimeError as error:
        yield absent("KD_Lib", "0.0.32", str(error))


if __name__ == "__main__":
    main({"metaensemble": ours, "torchdistill": torchdistill})
