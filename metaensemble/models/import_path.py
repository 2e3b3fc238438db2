"""Networks of the user's own: a factory named ``package.module:factory``."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models.shapes import InputShape

_KEYWORDS = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def call_factory(
    path: str, fields: Mapping[str, Any], classes: int, input_shape: InputShape
) -> nn.Module:
    """Return the network that the factory at an import path makes.

    Importing a module executes its code: only the user's own request may get here,
    never a path found in a file.

    Args:
        path: ``package.module:factory``; the current folder is searched first.
        fields: keyword arguments of the factory.
        classes: passed on if the factory's signature takes ``classes`` or, where the
            fields do not give it, ``num_classes``.
        input_shape: passed on likewise: channels, height, width.

    Raises:
        InputError: there is no such module or factory, the factory does not take the
            arguments, or what it returns is no module.
    """
    module_name, _, attribute = path.partition(":")
    with _current_folder_importable():
        factory = _find_factory(path, module_name, attribute)
        model = factory(**_arguments(path, factory, fields, classes, input_shape))
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a factory must return a torch.nn.Module, but {path} returned a "
            f"{type(model).__name__}; return the model"
        )
    return model


def _find_factory(path: str, module_name: str, attribute: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise InputError(
            f"an import path must be package.module:factory, but is {path!r}; "
            "write dots, not slashes, and no .py"
        )
    if module_name.endswith(".py"):
        raise InputError(
            f"an import path must name a module, not its file, but is {path!r}; "
            f"write {module_name.removesuffix('.py')}:{attribute}"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"the module of {path!r} must be importable, but is not ({error}); "
            "run from the folder that holds it, or install what is missing"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise InputError(
            f"an import path must name a factory, but {module_name!r} has no "
            f"callable {attribute!r}; name a class or function that it has"
        )
    return factory


def _arguments(
    path: str,
    factory: Callable[..., Any],
    fields: Mapping[str, Any],
    classes: int,
    input_shape: InputShape,
) -> dict[str, Any]:
    given = {"classes": classes, "input_shape": input_shape}
    signature = inspect.signature(factory)
    parameters = signature.parameters.values()
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    named = [p.name for p in parameters if p.kind in _KEYWORDS]
    for key in fields:
        if key in given or not (key in named or anything):
            known = [name for name in named if name not in given]
            raise InputError(
                f"{path} has no field {key!r}; "
                f"its fields are: {', '.join(known) or 'none'}"
            )
    arguments = {k: v for k, v in given.items() if k in named or anything}
    if "num_classes" in named:
        arguments["num_classes"] = classes  # a field says otherwise
    arguments |= fields
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{path} must be callable with the fields given, but is not ({error}); "
            f"give it as a field: {path},key=value"
        ) from error
    return arguments


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    importlib.invalidate_caches()  # the user may just have written the module
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
