"""Command lines and YAML files to configs."""

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml
from pydantic import Field, TypeAdapter, ValidationError, create_model

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.workflows.registry import METHODS, method_type

C = TypeVar("C", bound=Config)

NOT_OPTIONS = {"command"}
"""Keys of a config.yaml that name the run rather than set an option."""


def parse(
    config: type[C],
    arguments: Sequence[str],
    command: str,
    *,
    positional: str | None = None,
    hidden: Sequence[str] = (),
) -> C:
    """Return the config that the arguments spell.

    ``--config FILE`` reads a YAML file first, normally a run's ``config.yaml``; what
    stands on the command line overrides it.

    Args:
        config: the class; its fields are the flags, its docstrings the help.
        arguments: what follows the command.
        command: its name, for help and messages.
        positional: the field that takes the arguments without a flag.
        hidden: fields that are no flags and keep their defaults.

    Raises:
        InputError: the YAML file or a value is wrong. A wrong flag ends the process
            with status 2 and a message that lists near ones.
    """
    arguments, path = take_flag(arguments, "--config")
    values = read_yaml(Path(path), config) if path else {}
    return parse_model(config, arguments, command, values, positional, hidden)


def parse_with_method(
    options: type[Config],
    config: type[C],
    arguments: Sequence[str],
    command: str,
    *,
    positional: str,
) -> C:
    """Return the config of a command that takes ``--method NAME``.

    The flags are those of `options` and, flat beside them, the method's own.

    Args:
        options: the command's options without the method; its docstring is the help.
        config: the same with the field ``method``.
        arguments: what follows the command.
        command: its name.
        positional: the field that takes the arguments without a flag.
    """
    arguments, path = take_flag(arguments, "--config")
    values = read_yaml(Path(path), config) if path else {}
    method = values.pop("method", None)
    _, name = take_flag(arguments, "--method")
    if name is None and method is None:
        choices = Literal[tuple(METHODS)]  # pyright: ignore[reportInvalidTypeForm]
        note = "How; see metaensemble methods."
        extra: Any = (choices, Field(description=note))
        model = create_model("Options", __base__=options, method=extra)
        parse_model(model, arguments, command, values, positional)
        raise AssertionError("tyro must have asked for --method")
    kind = method_type(name) if name else type(method)
    own: dict[str, Any] = {"name": kind.model_fields["name"].default}
    if method is not None and type(method) is kind:
        own = method.model_dump()
    settings = create_model(
        "Settings",
        __base__=kind,
        name=(
            Annotated[Literal[own["name"]], tyro.conf.arg(name="method")],  # pyright: ignore[reportInvalidTypeForm]
            Field(default=own["name"], description=f"{kind.summary} ({kind.paper})"),
        ),
    )
    extra = (Annotated[settings, tyro.conf.arg(name="")], settings(**own))
    model = create_model(
        "Options", __base__=options, __doc__=options.__doc__, settings=extra
    )
    parsed = parse_model(model, arguments, command, values, positional)
    fields = {n: getattr(parsed, n) for n in options.model_fields}
    chosen = kind(**parsed.settings.model_dump())  # pyright: ignore[reportAttributeAccessIssue]
    return config(**fields, method=chosen)


def parse_model(
    model: type[C],
    arguments: Sequence[str],
    command: str,
    values: dict[str, Any],
    positional: str | None,
    hidden: Sequence[str] = (),
) -> C:
    """Parse with tyro; `values` from a YAML file are defaults."""
    shown: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        annotation: Any = info.rebuild_annotation()
        if name in hidden:
            shown[name] = (Annotated[annotation, tyro.conf.Suppress], info)
        elif name == positional:
            shown[name] = (Annotated[annotation, tyro.conf.Positional], info)
    model = create_model(model.__name__, __base__=model, __doc__=model.__doc__, **shown)
    default = None
    if values:
        fields = {
            name: values[name]
            if name in values
            else tyro.MISSING
            if info.is_required()
            else info.get_default(call_default_factory=True)
            for name, info in model.model_fields.items()
        }
        default = model.model_construct(**fields)
    try:
        return tyro.cli(
            model,
            prog=f"metaensemble {command}",
            description=inspect.cleandoc(model.__doc__ or ""),
            args=list(arguments),
            default=default,
        )
    except ValidationError as error:
        text = f"{_first(error)}; see: metaensemble {command} --help"
        raise InputError(text) from error


def take_flag(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Return the arguments without ``flag VALUE`` (or ``flag=VALUE``), and the value.

    Raises:
        InputError: the flag has no value.
    """
    rest: list[str] = []
    value: str | None = None
    waiting = iter(arguments)
    for argument in waiting:
        if argument == flag:
            value = next(waiting, None)
            if value is None or value.startswith("--"):
                raise InputError(f"{flag} must be followed by a value; give one")
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return rest, value


def read_yaml(path: Path, config: type[Config]) -> dict[str, Any]:
    """Return the validated options of a YAML file.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is no mapping, has an unknown key, or a value does not fit.
    """
    if not path.exists():
        raise MissingFileError(
            f"--config must be a YAML file, but {path} does not exist; "
            "every run writes one: RUN/config.yaml"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path} must be YAML, but is not ({text})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must map options to values, but holds {values!r}")
    fields = config.model_fields
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key in NOT_OPTIONS:
            continue
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            )
            raise InputError(
                f"every key of {path} must be an option, but {key!r} is not; {hint}"
            )
        try:
            adapter = TypeAdapter(Annotated[fields[key].rebuild_annotation(), ""])
            result[key] = adapter.validate_python(value)
        except ValidationError as error:
            raise InputError(f"{path}: {key}: {_first(error)}") from error
    return result


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    message = message[0].lower() + message[1:]
    return f"{where}: {message}, but got {first['input']!r}"
