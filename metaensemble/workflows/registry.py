"""All methods: the registry is a type, and everything else is read off it.

To add a method: write its file under ``methods/`` or ``merging/``, and put its class
into the union below.
"""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from metaensemble.core.errors import InputError
from metaensemble.core.method import Method
from metaensemble.merging import (
    AlignedSoup,
    BestMember,
    GreedySoup,
    LearnedSoup,
    Merger,
    OtFusion,
    RegressionMerge,
    Repair,
    Soup,
)
from metaensemble.methods import (
    AT,
    CC,
    CRD,
    DKD,
    FT,
    IRG,
    KD,
    RKD,
    SP,
    VID,
    Auto,
    Blockwise,
    EnsembleDistribution,
    FitNet,
    LatentEnsemble,
    Meal,
    MealV2,
    Mutual,
    One,
    SelfDistillation,
    Srm,
    StudentEnsemble,
    TrainedMethod,
    WeightFormerMethod,
)

Registered = (
    BestMember
    | Soup
    | GreedySoup
    | LearnedSoup
    | AlignedSoup
    | Repair
    | RegressionMerge
    | OtFusion
    | KD
    | DKD
    | FitNet
    | AT
    | SP
    | CC
    | RKD
    | VID
    | FT
    | IRG
    | CRD
    | LatentEnsemble
    | Meal
    | MealV2
    | Srm
    | Blockwise
    | One
    | StudentEnsemble
    | Mutual
    | SelfDistillation
    | EnsembleDistribution
    | WeightFormerMethod
    | Auto
)
AnyMethod = Annotated[Registered, Field(discriminator="name")]
"""One of the methods, told apart by its ``name``."""

MethodUnion = TrainedMethod | Merger | Auto
"""What workflows take: a method that is registered, or one of the user's own."""

METHODS: dict[str, type[Method]] = {
    kind.model_fields["name"].default: kind for kind in get_args(Registered)
}
"""Name to class, in the order of the union."""


def method_type(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        InputError: there is none of that name.
    """
    if name not in METHODS:
        raise InputError(
            f"--method must be one of {', '.join(METHODS)}, but is {name!r}; "
            "see: metaensemble methods"
        )
    return METHODS[name]


def make_method(name: str, **hyperparameters: object) -> Registered:
    """Return the method `name` with hyperparameters.

    Raises:
        InputError: no such method or hyperparameter, or a value out of its range.
    """
    method_type(name)
    try:
        return TypeAdapter(AnyMethod).validate_python({"name": name, **hyperparameters})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise InputError(
            f"the hyperparameters of {name} must be valid, but {where}: "
            f"{first['msg']} (got {first['input']!r}); see: metaensemble fuse "
            f"--method {name} --help"
        ) from error
