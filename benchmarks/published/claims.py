"""What papers and their repositories report, and which rows of our studies to hold to.

Every claim is a difference: of one figure, minus another. Only figures that stand in a
paper's text or its repository are here; what is known from hearsay is not. Where a
source has a table, its cells are here and the difference is computed from them.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

Pick = dict[str, Any]
"""Fields of the row that is meant: its own, or its method's."""


@dataclass(frozen=True)
class Figure:
    """Where the report of a study has a figure."""

    path: str
    """Names from a row down to the figure, with dots between them."""
    pick: Pick
    """Which row of each seed or draw; one must fit."""


@dataclass(frozen=True)
class Claim:
    """One published difference, and the same one in a study of ours."""

    method: str
    what: str
    published: float | str
    """In points, nats or percent as `unit`; a string: its direction, or "0"."""
    where: str
    """Networks, data and source of the published figure."""
    study: str
    of: Figure
    minus: Figure
    unit: str = "points"
    relative: bool = False
    """Whether the difference is a share of what is subtracted, in percent."""

    @property
    def expected(self) -> int:
        """Return the published sign."""
        if isinstance(self.published, str):
            return {"> 0": 1, "< 0": -1, "0": 0}[self.published]
        return 1 if self.published > 0 else -1


TEST = "student.test.accuracy"
MEMBER = Figure("mean_teacher.test.accuracy", {"name": "best_member"})
ENSEMBLE = Figure("ensemble.test.accuracy", {"name": "best_member"})
REPDISTILLER = {
    "student": (73.26, 71.98, 69.06, 69.06, 71.14, 72.50, 70.36),
    "kd": (74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98),
    "fitnet": (73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02),
    "at": (74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43),
    "sp": (73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68),
    "cc": (73.56, 72.21, 69.63, 69.48, 71.48, 72.97, 70.71),
    "vid": (74.11, 73.30, 70.38, 70.16, 72.61, 73.09, 71.23),
    "rkd": (73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48),
    "ft": (73.25, 71.59, 69.84, 70.22, 72.37, 72.86, 70.58),
    "crd": (75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94),
}
"""CIFAR-100, test accuracy, seven pairs of one family (RepDistiller's README)."""
MDISTILLER = {
    "kd": (74.92, 73.54, 70.66, 73.08, 73.33, 72.98),
    "dkd": (76.23, 74.81, 71.97, 74.11, 76.32, 74.68),
}
"""The same but for one pair, which mdistiller's README lacks."""
IRG = {"kd": (89.09, 87.01), "irg": (90.28, 88.55)}
"""CIFAR-10, two pairs (IRG's README)."""
LATENT = {
    "kd": (79.17, 1.072, 13.4),
    "latent": (79.32, 1.012, 12.7),
    "latent, tdiv": (80.09, 0.798, 7.1),
}
"""CIFAR-100, WRN-28-4, four teachers: accuracy, NLL, ECE (distill-latentbe)."""
REPAIR_MLP = {
    1: (96.82, 97.51),
    2: (96.22, 96.86),
    5: (93.53, 95.87),
    10: (81.18, 95.31),
}
"""MNIST, 128 units, by hidden layers: aligned, with REPAIR (its notebooks)."""
VGG = {"ends": fmean((92.17, 92.18)), "soup": 10.0, "aligned": 61.33, "repair": 88.18}
"""CIFAR-10, VGG-11 (REPAIR's notebooks)."""
CLIP = {"mean": 77.93, "best": 80.39, "soup": 79.97, "greedy": 81.03, "learned": 81.38}
"""ImageNet, 72 fine-tunes of CLIP ViT-B/32 (model-soups, result files)."""


def mean_difference(table: dict[str, tuple[float, ...]], a: str, b: str) -> float:
    """Return by how much `a` is above `b`, mean over the columns."""
    return fmean(x - y for x, y in zip(table[a], table[b], strict=True))


def student(name: str, path: str = TEST, **fields: Any) -> Figure:
    """Return a figure of the student that a method made."""
    return Figure(path, {"name": name, **fields})


HALF = {"epochs": 0.9184, "start": "best_member", "perturbation": "none"}
KD = student("kd", **HALF, temperature=2.0)
"""At half of a member's budget, as the other methods of that study."""


def distilled(method: str, published: float, where: str) -> Claim:
    return Claim(
        method,
        f"{method} - kd",
        published,
        where,
        "distillation_small",
        student(method),
        KD,
    )


def latent(name: str, row: int, unit: str, figure: str) -> list[Claim]:
    """Return LatentBE, and with TDiv-SDiv, against kd at its temperature."""
    path = f"student.test.{figure}"
    kd = student("kd", path, **HALF, temperature=4.0)
    return [
        Claim(
            "latent_ensemble",
            f"{label} - kd (T = 4), {name}",
            LATENT[key][row] - LATENT["kd"][row],
            "CIFAR-100, WRN-28-4, four teachers (distill-latentbe, README)",
            "distillation_small",
            student("latent_ensemble", path, perturbation=perturbation),
            kd,
            unit,
        )
        for label, key, perturbation in (
            ("LatentBE", "latent", "none"),
            ("LatentBE + TDiv-SDiv", "latent, tdiv", "tdiv_sdiv"),
        )
    ]


def ensembles(name: str, published: float, unit: str, figure: str) -> Claim:
    return Claim(
        "ensembles",
        f"ensemble of 4 - one network, {name}",
        published,
        "CIFAR-10, WRN-28-1 (giung2, CIFAR baselines)",
        "distillation_small",
        Figure(f"ensemble.test.{figure}", ENSEMBLE.pick),
        Figure(f"mean_teacher.test.{figure}", MEMBER.pick),
        unit,
    )


PAIRS = "CIFAR-100, seven pairs, one teacher, no kd beside it (RepDistiller, README)"
ABSTRACT = "no figure at hand (arXiv 2210.01973, abstract)"
THEORY = "no figure at hand (arXiv 2012.09816, abstract)"
CLIPS = "ImageNet, 72 fine-tunes of CLIP ViT-B/32 (model-soups, result files)"


def views(what: str, published: str, of: str, minus: str) -> Claim:
    """Return a claim on images of one view, the only ones on which networks err."""
    a, b = (Figure("single_view", {"arm": arm}) for arm in (of, minus))
    return Claim("multi-view", what, published, THEORY, "multiview", a, b)


def soups(what: str, of: str, minus: str, a: Figure, b: Figure) -> Claim:
    return Claim("soups", what, CLIP[of] - CLIP[minus], CLIPS, "soups", a, b)


def written(what: str, published: str, regime: str, of: Figure, minus: Figure) -> Claim:
    study = f"weightformer_small/{regime}"
    return Claim("WeightFormer", what, published, ABSTRACT, study, of, minus)


def merged(what: str, of: str, minus: str, a: Figure, b: Figure) -> Claim:
    where = "CIFAR-10, VGG-11, activations matched (REPAIR, notebooks)"
    return Claim("merging", what, VGG[of] - VGG[minus], where, "merging", a, b)


SOUP, REPAIR, ALIGNED = (student(n) for n in ("soup", "repair", "aligned_soup"))
LEARNED = student("learned_soup", target="ensemble")
GREEDY, BEST = student("greedy_soup"), student("best_member")

CLAIMS = [
    ensembles("accuracy", 94.60 - 92.31, "points", "accuracy"),
    ensembles("NLL", 0.1701 - 0.2801, "nats", "nll"),
    ensembles("ECE", 0.86 - 3.96, "points", "ece"),
    Claim(
        "kd",
        "kd from fresh weights - one network",
        mean_difference(REPDISTILLER, "kd", "student"),
        "CIFAR-100, seven pairs, one teacher (RepDistiller, README)",
        "distillation_small",
        student("kd", start="scratch"),
        MEMBER,
    ),
    distilled(
        "dkd",
        mean_difference(MDISTILLER, "dkd", "kd"),
        "CIFAR-100, six pairs, one teacher (mdistiller, README)",
    ),
    *(
        distilled(name, mean_difference(REPDISTILLER, name, "kd"), PAIRS)
        for name in ("crd", "vid", "at", "sp", "cc", "rkd", "ft", "fitnet")
    ),
    distilled(
        "irg",
        mean_difference(IRG, "irg", "kd"),
        "CIFAR-10, two pairs, one teacher (IRG, README)",
    ),
    *latent("accuracy", 0, "points", "accuracy"),
    *latent("NLL", 1, "nats", "nll"),
    *latent("ECE", 2, "points", "ece"),
    Claim(
        "meal",
        "meal - one network",
        23.85 - 21.79,
        "ImageNet, ResNet-50 from ResNet-101 and -152 (MEAL, README)",
        "distillation_small",
        student("meal"),
        MEMBER,
    ),
    Claim(
        "meal_v2",
        "meal_v2 - meal",
        80.67 - 78.21,
        "ImageNet, ResNet-50, other teachers and start (MEAL-V2, README)",
        "distillation_small",
        student("meal_v2"),
        student("meal"),
    ),
    distilled(
        "srm",
        71.21 - 71.03,
        "ImageNet, ResNet-18 (SRM's README; kd: mdistiller's)",
    ),
    Claim(
        "blockwise",
        "blockwise, half the multiply-adds - one network",
        1.05,
        "MobileNet-V2 (arXiv 2104.09191, abstract)",
        "distillation_small",
        student("blockwise"),
        MEMBER,
    ),
    Claim(
        "one",
        "one branch of ONE - trained alone",
        "> 0",
        "no figure at hand (arXiv 1806.04606, abstract)",
        "online_small",
        Figure("test.accuracy", {"group": "one", "network": "branch-0"}),
        Figure("test.accuracy", {"group": "alone"}),
    ),
    Claim(
        "student_ensemble",
        "smallest student - trained alone, share",
        10.64,
        "CIFAR-100, ResNet-110, 3 % of its weights (arXiv 2011.07449, abstract)",
        "online_small",
        Figure("test.accuracy", {"group": "student_ensemble", "network": "student-3"}),
        Figure("test.accuracy", {"group": "smallest_alone"}),
        "%",
        relative=True,
    ),
    Claim(
        "self_distillation",
        "second generation - first",
        "> 0",
        THEORY,
        "online_small",
        Figure("test.accuracy", {"network": "generation-1"}),
        Figure("test.accuracy", {"network": "generation-0"}),
    ),
    views("ensemble - single", "> 0", "ensemble", "single"),
    views("distilled - single", "> 0", "distilled", "single"),
    views("self-distilled - single", "> 0", "self-distilled", "single"),
    views(
        "ensemble - single, random features",
        "> 0",
        "random features, ensemble",
        "random features",
    ),
    views(
        "distilled - single, random features",
        "0",
        "random features, distilled",
        "random features",
    ),
    *(
        Claim(
            "merging",
            f"REPAIR - aligned mean, {depth} hidden layer{'s' * (depth > 1)}",
            repaired - aligned,
            "MNIST, MLP of 128 units (REPAIR, notebooks)",
            "mlp_depth",
            student(
                "repair",
                matching="weights",
                architecture=f"mlp,depth={depth},width=128",
            ),
            student("aligned_soup", architecture=f"mlp,depth={depth},width=128"),
        )
        for depth, (aligned, repaired) in REPAIR_MLP.items()
    ),
    merged("plain mean - one network", "soup", "ends", SOUP, MEMBER),
    merged("aligned mean - one network", "aligned", "ends", ALIGNED, MEMBER),
    merged("REPAIR - aligned mean", "repair", "aligned", REPAIR, ALIGNED),
    merged("REPAIR - one network", "repair", "ends", REPAIR, MEMBER),
    soups("uniform soup - mean member", "soup", "mean", SOUP, MEMBER),
    soups("uniform soup - best member", "soup", "best", SOUP, BEST),
    soups("greedy - uniform soup", "greedy", "soup", GREEDY, SOUP),
    soups("learned - greedy soup", "learned", "greedy", LEARNED, GREEDY),
    written(
        "one pass, unseen teachers - their mean, fine-tunes of one start",
        "> 0",
        "one-start",
        student("weightformer", head="mixture", refine="none"),
        MEMBER,
    ),
    written(
        "one pass, unseen teachers - their mean, unequal knowledge",
        "> 0",
        "unequal",
        student("weightformer", head="mixture", refine="none"),
        MEMBER,
    ),
    written(
        "one pass, unseen teachers - their mean, independent",
        "> 0",
        "independent",
        student("weightformer", head="residual", refine="none"),
        MEMBER,
    ),
    written(
        "fine-tuned - the ensemble, fine-tunes of one start",
        "> 0",
        "one-start",
        student("weightformer", stage="tuned", tune_epochs=1.2857),
        ENSEMBLE,
    ),
    written(
        "fine-tuned - the ensemble, independent",
        "> 0",
        "independent",
        student("weightformer", stage="tuned", tune_epochs=1.8367),
        ENSEMBLE,
    ),
]
