"""Compute the numbers in this folder with the reference implementations.

    git clone https://github.com/HobbitLong/RepDistiller    (BSD-2, at b84f547)
    git clone https://github.com/megvii-research/mdistiller (MIT, at a08d46f)
    python tests/methods/golden/make_golden.py RepDistiller mdistiller

Nothing of either is copied: their losses are run on the inputs below, on the CPU, and
values and gradients are written as JSON, together with the inputs and weights.
"""

import importlib
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent


def wave(*shape: int, rate: float, phase: float = 0.0, scale: float = 1.0) -> Tensor:
    """Numbers without a random generator, exact in few decimals."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = scale * torch.sin(rate * count + phase)
    return values.mul(1e4).round().div(1e4).float().view(shape)


def plain(value: Any) -> Any:
    """Tensors as nested lists with the digits that float32 has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def write(name: str, **content: Any) -> None:
    text = json.dumps(plain(content), separators=(",", ":"))
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_()


def fill(module: nn.Module, rate: float, scale: float = 0.4) -> dict[str, Tensor]:
    """Give a module fixed weights and return them; norms stay as they are."""
    for i, (name, parameter) in enumerate(module.named_parameters()):
        if parameter.ndim > 1 or "bias" in name:
            parameter.data = wave(*parameter.shape, rate=rate, phase=i, scale=scale)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def logit_losses(zoo: Any, dkd: Any, md_kd: Any) -> None:
    student, teacher = wave(4, 5, rate=1.7, scale=3), wave(4, 5, rate=2.3, scale=4)
    labels = torch.tensor([0, 3, 2, 4])
    for name, temperature, loss in (
        ("kd", 4.0, lambda s: zoo.DistillKL(4.0)(s, teacher)),
        ("kd_mdistiller", 2.0, lambda s: md_kd.kd_loss(s, teacher, 2.0)),
        ("dkd", 4.0, lambda s: dkd.dkd_loss(s, teacher, labels, 1.0, 8.0, 4.0)),
    ):
        logits = leaf(student)
        value = loss(logits)
        value.backward()
        write(
            name,
            temperature=temperature,
            student=student,
            teacher=teacher,
            labels=labels,
            loss=value.item(),
            gradient=logits.grad,
        )


def map_losses(zoo: Any, util: Any) -> None:
    # two stages: one of equal sizes, one where the student's is larger
    own = [wave(3, 2, 4, 4, rate=0.9), wave(3, 3, 4, 4, rate=1.3, phase=1)]
    theirs = [wave(3, 4, 4, 4, rate=0.7), wave(3, 5, 2, 2, rate=1.9, phase=2)]

    def run(name: str, loss: Any, modules: dict[str, nn.Module], places: list[int]):
        maps = [leaf(own[i]) for i in places]
        weights = {key: fill(module, 0.37) for key, module in modules.items()}
        value = loss(maps, [theirs[i] for i in places])
        value.sum().backward()
        write(
            name,
            student=[own[i] for i in places],
            teacher=[theirs[i] for i in places],
            weights=weights,
            loss=value.sum().item(),
            gradient=[m.grad for m in maps],
            gradients={key: gradients(module) for key, module in modules.items()},
        )

    regressor = util.ConvReg(own[0].shape, theirs[0].shape)
    run(
        "fitnet",
        lambda s, t: zoo.HintLoss()(regressor(s[0]), t[0]),
        {"regressor": regressor},
        [0],
    )
    run("at", lambda s, t: torch.stack(zoo.Attention()(s, t)).sum(), {}, [0, 1])
    run("sp", lambda s, t: zoo.Similarity()(s, t)[0], {}, [1])
    vid = [zoo.VIDLoss(2, 4, 4), zoo.VIDLoss(3, 5, 5)]
    run(
        "vid",
        lambda s, t: vid[0](s[0], t[0]) + vid[1](s[1], t[1]),
        {"0": vid[0], "1": vid[1]},
        [0, 1],
    )
    paraphraser = util.Paraphraser(theirs[0].shape)
    translator = util.Translator(own[0].shape, theirs[0].shape)
    run(
        "ft",
        lambda s, t: zoo.FactorTransfer()(
            translator(s[0]), paraphraser(t[0], is_factor=True).detach()
        ),
        {"translator": translator, "paraphraser": paraphraser},
        [0],
    )
    factor, again = paraphraser(theirs[0])
    write(
        "ft_paraphraser",
        teacher=theirs[0],
        factor=factor.detach(),
        loss=nn.MSELoss()(again, theirs[0]).item(),
    )


def vector_losses(zoo: Any, util: Any) -> None:
    student, teacher = wave(5, 3, rate=1.1), wave(5, 4, rate=0.8, phase=1)
    vectors = leaf(student)
    value = zoo.RKDLoss()(vectors, teacher)
    value.backward()
    write(
        "rkd",
        student=student,
        teacher=teacher,
        loss=value.item(),
        gradient=vectors.grad,
    )

    embed_s, embed_t = util.LinearEmbed(3, 6), util.LinearEmbed(4, 6)
    weights = {"student": fill(embed_s, 0.37), "teacher": fill(embed_t, 0.53)}
    vectors = leaf(student)
    value = zoo.Correlation()(embed_s(vectors), embed_t(teacher))
    value.backward()
    write(
        "cc",
        student=student,
        teacher=teacher,
        weights=weights,
        loss=value.item(),
        gradient=vectors.grad,
        gradients={"student": gradients(embed_s), "teacher": gradients(embed_t)},
    )


def crd_loss(criterion: Any, memory: Any) -> None:
    memory.AliasMethod.cuda = lambda self: None
    opt = types.SimpleNamespace(
        s_dim=3, t_dim=4, feat_dim=6, n_data=8, nce_k=3, nce_t=0.07, nce_m=0.5
    )
    loss = criterion.CRDLoss(opt)
    weights = {
        "student": fill(loss.embed_s, 0.37),
        "teacher": fill(loss.embed_t, 0.53),
    }
    banks = {
        "student": wave(8, 6, rate=0.61, scale=0.7),
        "teacher": wave(8, 6, rate=0.83, scale=0.7),
    }
    loss.contrast.memory_v1.copy_(banks["student"])
    loss.contrast.memory_v2.copy_(banks["teacher"])
    steps = []
    for phase, indices in ((0.0, [0, 3]), (1.0, [3, 6])):
        student, teacher = (
            wave(2, 3, rate=1.1, phase=phase),
            wave(2, 4, rate=0.8, phase=phase),
        )
        others = torch.tensor([[1, 2, 5], [4, 7, 1]])
        places = torch.tensor(indices)
        vectors = leaf(student)
        loss.zero_grad()
        chosen = torch.cat([places[:, None], others], 1)
        value = loss(vectors, teacher, places, chosen)
        value.sum().backward()
        steps.append(
            {
                "student": student,
                "teacher": teacher,
                "indices": places,
                "others": others,
                "loss": value.sum().item(),
                "gradient": vectors.grad,
                "gradients": {
                    "student": gradients(loss.embed_s),
                    "teacher": gradients(loss.embed_t),
                },
                "banks": {
                    "student": loss.contrast.memory_v1.clone(),
                    "teacher": loss.contrast.memory_v2.clone(),
                },
                # the reference calls the student's scores 1
                "scales": loss.contrast.params[2:4].clone(),
            }
        )
    write("crd", weights=weights, banks=banks, steps=steps)


def without_init(package: str, folder: Path) -> None:
    """Make a package importable without running its __init__, which wants more."""
    module = types.ModuleType(package)
    module.__path__ = [str(folder)]
    sys.modules[package] = module


def main(repdistiller: str, mdistiller: str) -> None:
    warnings.simplefilter("ignore")
    sys.path.insert(0, repdistiller)
    without_init("models", Path(repdistiller) / "models")
    without_init("mdistiller", Path(mdistiller) / "mdistiller")
    without_init("mdistiller.distillers", Path(mdistiller) / "mdistiller/distillers")
    zoo: Any = importlib.import_module("distiller_zoo")
    util: Any = importlib.import_module("models.util")
    logit_losses(
        zoo,
        importlib.import_module("mdistiller.distillers.DKD"),
        importlib.import_module("mdistiller.distillers.KD"),
    )
    map_losses(zoo, util)
    vector_losses(zoo, util)
    crd_loss(
        importlib.import_module("crd.criterion"), importlib.import_module("crd.memory")
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
