"""Architectures by built-in name or import path, with fields: ``resnet20,width=2``."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, get_args, get_origin

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import nn

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import seeded
from metaensemble.models.cifar_resnet import cifar_resnet
from metaensemble.models.convnet import convnet
from metaensemble.models.gated import gated
from metaensemble.models.import_path import call_factory
from metaensemble.models.mlp import mlp
from metaensemble.models.mobilenet import mobilenet_v2
from metaensemble.models.patchnet import patchnet
from metaensemble.models.resnet import resnet
from metaensemble.models.shapes import InputShape
from metaensemble.models.slim import apply_slim, refuse_unfit
from metaensemble.models.vgg import vgg
from metaensemble.models.vit import vit
from metaensemble.models.wide_resnet import wide_resnet

Value = int | float | str | bool

BUILTINS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet20": partial(cifar_resnet, 20),
    "resnet32": partial(cifar_resnet, 32),
    "resnet56": partial(cifar_resnet, 56),
    "resnet18": partial(resnet, 18),
    "resnet34": partial(resnet, 34),
    "resnet50": partial(resnet, 50),
    "resnet101": partial(resnet, 101),
    "vgg11": partial(vgg, 11, False),
    "vgg13": partial(vgg, 13, False),
    "vgg16": partial(vgg, 16, False),
    "vgg19": partial(vgg, 19, False),
    "vgg11_bn": partial(vgg, 11, True),
    "vgg13_bn": partial(vgg, 13, True),
    "vgg16_bn": partial(vgg, 16, True),
    "vgg19_bn": partial(vgg, 19, True),
    "wrn16_1": partial(wide_resnet, 16, 1),
    "wrn16_2": partial(wide_resnet, 16, 2),
    "wrn28_1": partial(wide_resnet, 28, 1),
    "wrn28_2": partial(wide_resnet, 28, 2),
    "wrn28_4": partial(wide_resnet, 28, 4),
    "wrn28_5": partial(wide_resnet, 28, 5),
    "wrn28_10": partial(wide_resnet, 28, 10),
    "wrn40_2": partial(wide_resnet, 40, 2),
    "mobilenet_v2": mobilenet_v2,
    "patchnet": patchnet,
    "vit_small_32x32": partial(vit, patch=4, dim=192, depth=6, heads=3, mlp_dim=384),
    "vit_b_16": partial(vit, patch=16, dim=768, depth=12, heads=12, mlp_dim=3072),
    "vit_b_32": partial(vit, patch=32, dim=768, depth=12, heads=12, mlp_dim=3072),
}
"""Name -> ``builder(classes, input_shape, *, fields...)``."""

SLIM = "slim"
"""A field that every architecture has; import paths', too."""
BRANCHES = "branches"
"""Another one."""
MOST_BRANCHES = 64
"""More are a slip of the keyboard, or a hostile record."""
UNIVERSAL = (BRANCHES, SLIM)
"""The fields that every architecture has, in the order in which they are applied."""


class Architecture(Config):
    """A network by name, with fields: as text ``resnet20,shortcut=B,width=2``.

    Where a config expects an architecture, its text is accepted too.
    """

    name: str
    """A built-in name (resnet20, vit_b_32, ...) or an import path such as
    package.module:factory, found from the current folder."""

    fields: dict[str, Value] = Field(default_factory=dict)
    """Keyword arguments of the network, such as width=2; and, last, branches=3, so many
    copies of its last part on one trunk, weighed by a gate (see
    `metaensemble.models.gated`), and slim=..., by which layers of any network have
    fewer channels (see `metaensemble.models.slim`)."""

    @property
    def is_import_path(self) -> bool:
        """Whether building it executes code of the user's choice, not of ours.

        Text from a file, such as a checkpoint's metadata, may be anybody's: build it
        only if this is false, or if the user named the same path himself.
        """
        return ":" in self.name

    @property
    def full(self) -> "Architecture":
        """Return the architecture before it was slimmed."""
        return self._without(SLIM)

    @property
    def plain(self) -> "Architecture":
        """Return the architecture without the fields that every one has."""
        return self._without(*UNIVERSAL)

    def branched(self, count: int) -> "Architecture":
        """Return the architecture with the field ``branches``, in place of its own."""
        return Architecture(name=self.name, fields={**self.fields, BRANCHES: count})

    def slimmed(self, text: str) -> "Architecture":
        """Return the architecture with the field ``slim``, in place of its own."""
        return Architecture(name=self.name, fields={**self.fields, SLIM: text})

    def _without(self, *keys: str) -> "Architecture":
        fields = {key: v for key, v in self.fields.items() if key not in keys}
        return Architecture(name=self.name, fields=fields)

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Return the architecture that ``name,key=value,...`` spells.

        A value is an integer, a finite float, ``true`` or ``false``, else a string.

        Raises:
            InputError: the text is malformed.
        """
        return cls(**_split(text))

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return _split(value) if isinstance(value, str) else value

    @field_validator("fields")
    @classmethod
    def _in_order(cls, fields: dict[str, Value]) -> dict[str, Value]:
        own = sorted(key for key in fields if key not in UNIVERSAL)
        return {key: fields[key] for key in (*own, *UNIVERSAL) if key in fields}

    @model_validator(mode="after")
    def _spellable(self) -> "Architecture":
        again = _split(str(self))
        if repr(again) != repr({"name": self.name, "fields": self.fields}):
            raise InputError(
                "an architecture must be spellable as name,key=value, but "
                f"{self.name!r} with {self.fields} is not; use plain numbers and words"
            )
        return self

    def __str__(self) -> str:
        """Return the canonical text, which `parse` reads back: fields in order."""
        return ",".join(
            [self.name, *(f"{k}={_spell(v)}" for k, v in self.fields.items())]
        )


def build(
    architecture: Architecture | str, classes: int, input_shape: InputShape
) -> nn.Module:
    """Return a new network that maps images (batch, c, h, w) to (batch, classes).

    Building an import path imports its module, with the current folder on the path, and
    calls the factory: this executes the code found there. The factory gets ``classes``
    and ``input_shape`` where its signature takes them, and the fields.

    Args:
        architecture: what to build, or its text.
        classes: number of logits, at least 2.
        input_shape: channels, height, width.

    Raises:
        InputError: no such architecture or field, a field's value does not suit it, or
            the network does not suit the input.
    """
    if isinstance(architecture, str):
        architecture = Architecture.parse(architecture)
    if classes < 2:
        raise InputError(
            f"a classifier needs at least 2 classes, but there are {classes}; "
            "use data with more"
        )
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            "the input shape must be (channels, height, width), each at least 1, "
            f"but is {tuple(input_shape)}; check the data"
        )
    if SLIM in architecture.fields:
        network = build(architecture.full, classes, input_shape)
        text = str(architecture.fields[SLIM])
        apply_slim(network, text)
        refuse_unfit(network, input_shape, text)
        return network
    if BRANCHES in architecture.fields:
        count = architecture.fields[BRANCHES]
        if type(count) is not int or not 2 <= count <= MOST_BRANCHES:
            raise InputError(
                f"branches must be a whole number of at least 2, at most "
                f"{MOST_BRANCHES}, but is {count!r}; "
                "write it as resnet20,branches=3"
            )
        networks = [
            build(architecture.plain, classes, input_shape) for _ in range(count)
        ]
        return gated(networks, input_shape)
    if architecture.is_import_path:
        return call_factory(
            architecture.name, architecture.fields, classes, input_shape
        )
    builder = BUILTINS.get(architecture.name)
    if builder is None:
        raise InputError(_unknown_name(architecture.name))
    fields = _valid_fields(architecture, _fields_of(builder))
    return builder(classes, input_shape, **fields)


def init_model(
    architecture: Architecture | str, classes: int, input_shape: InputShape, seed: int
) -> nn.Module:
    """Return `build`'s network with initial weights that depend on `seed` alone."""
    with seeded(seed, "init"):
        return build(architecture, classes, input_shape)


def describe_architectures() -> str:
    """Return a line per built-in network: name, what it is, fields with defaults.

    Of a field with choices, all are listed, the default first.
    """
    lines = []
    for name, builder in BUILTINS.items():
        function = builder.func if isinstance(builder, partial) else builder
        doc = (inspect.getdoc(function) or "").partition("\n")[0]
        lines.append(f"{name:<16} {doc} Fields: {_list_fields(_fields_of(builder))}")
    return "\n".join(lines)


def _split(text: str) -> dict[str, Any]:
    name, *pairs = (part.strip() for part in text.split(","))
    if not name or "=" in name:
        raise InputError(
            f"an architecture must start with its name, but {text!r} does not; "
            "write it as resnet20,width=2"
        )
    fields: dict[str, Value] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key.isidentifier() and equals and value) or "=" in value:
            raise InputError(
                f"a field of an architecture must be key=value, but {pair!r} in "
                f"{text!r} is not; write it as resnet20,width=2"
            )
        if key in fields:
            raise InputError(
                f"a field of an architecture must be given once, but {text!r} has "
                f"{key!r} twice; leave one out"
            )
        fields[key] = _parse_value(value)
    return {"name": name, "fields": fields}


def _parse_value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return text


def _spell(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown_name(name: str) -> str:
    close = difflib.get_close_matches(name, BUILTINS, n=3)
    module, dot, factory = name.rpartition(".")
    if dot and not close:
        hint = f"did you mean {module}:{factory}?"
    elif close:
        hint = f"did you mean {' or '.join(close)}? built-in are {', '.join(BUILTINS)}"
    else:
        hint = f"built-in are {', '.join(BUILTINS)}"
        hint += f"; write {name}:FACTORY for one in {name}.py" * name.isidentifier()
    return (
        "an architecture must be a built-in name or an import path "
        f"package.module:factory, but {name!r} is neither; {hint}"
    )


def _fields_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {k: p for k, p in parameters.items() if p.kind is keyword_only}


def _list_fields(known: Mapping[str, inspect.Parameter]) -> str:
    texts = []
    for key, parameter in known.items():
        values = [parameter.default]
        if get_origin(parameter.annotation) is Literal:
            values = list(get_args(parameter.annotation))
        texts.append(f"{key}={'|'.join(_spell(value) for value in values)}")
    return ", ".join(texts) or "none"


def _valid_fields(
    architecture: Architecture, known: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in architecture.fields.items():
        if key not in known:
            raise InputError(
                f"{architecture.name} has no field {key!r}; "
                f"its fields are: {_list_fields(known)}"
            )
        try:
            adapter = TypeAdapter(known[key].annotation)
            fields[key] = adapter.validate_python(value, strict=True)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Input ")
            raise InputError(
                f"the field {key!r} of {architecture.name} {why}, but is {value!r}; "
                f"its fields are: {_list_fields(known)}"
            ) from error
    return fields
