"""Command lines and YAML files to configs."""

import difflib
import inspect
import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import Field, TypeAdapter, ValidationError, create_model

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.guards import load_yaml, one_line
from metaensemble.workflows.registry import METHODS, method_type

C = TypeVar("C", bound=Config)


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
    parsed = _parse(config, arguments, command, values, positional, hidden)
    return config(**{name: getattr(parsed, name) for name in config.model_fields})


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
    kind = method_type(name) if name else type(method)
    extra: Any
    if kind is type(None):  # no method yet: help, or an error that asks for one
        choices: Any = Literal[tuple(METHODS)]
        extra = {"method": (choices, Field(description="See: metaensemble methods."))}
    else:
        known = method.model_dump() if type(method) is kind else {}
        extra = {"settings": _flat(kind, known)}
    model: Any = create_model("Options", __base__=options, **extra)
    model.__doc__ = options.__doc__
    parsed = _parse(model, arguments, command, values, positional)
    fields = {name: getattr(parsed, name) for name in options.model_fields}
    return config.model_validate({**fields, "method": parsed.settings.model_dump()})


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
    if not path.is_file():
        raise MissingFileError(
            f"--config must be a YAML file, but {path} is no file; "
            "every run writes one: RUN/config.yaml"
        )
    try:
        values = load_yaml(path)
    except ValueError as error:
        raise InputError(
            f"{path} must be YAML, but is not ({one_line(error)}); "
            "mend or leave out --config"
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} must map options to values, but holds "
            f"{one_line(repr(values))}; "
            "write lines such as seed: 1"
        )
    fields = config.model_fields
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            known = f"known are {', '.join(fields)}"
            hint = f"did you mean {near[0]!r}?" if near else known
            raise InputError(
                f"every key of {path} must be an option, but "
                f"{one_line(repr(key))} is not; {hint}"
            )
        info = fields[key]
        annotation: Any = info.rebuild_annotation()
        if info.discriminator:
            told = Field(discriminator=info.discriminator)
            annotation = Annotated[annotation, told]
        try:
            result[key] = TypeAdapter(annotation).validate_python(value)
        except ValidationError as error:
            raise InputError(f"in {path}, {key} is wrong: {_first(error)}") from error
    return result


def _flat(kind: type[Config], known: dict[str, Any]) -> Any:
    """Return a method as a field whose own fields are flags without a prefix."""
    name = kind.model_fields["name"].default
    choice: Any = Annotated[Literal[name], tyro.conf.arg(name="method")]
    told = Field(default=name, description="The method, whose options are below.")
    extra: Any = {"name": (choice, told)}
    settings: Any = create_model("Settings", __base__=kind, **extra)
    annotation: Any = Annotated[settings, tyro.conf.arg(name="")]
    return (annotation, settings(**known))


def _parse(
    config: type[Config],
    arguments: Sequence[str],
    command: str,
    values: dict[str, Any],
    positional: str | None,
    hidden: Sequence[str] = (),
) -> Any:
    """Parse with tyro; `values` from a YAML file are the defaults."""
    marks = {name: tyro.conf.Suppress for name in hidden}
    if positional:
        marks[positional] = tyro.conf.Positional
    shown: dict[str, Any] = {}
    for name, mark in marks.items():
        info = config.model_fields[name]
        shown[name] = (Annotated[info.rebuild_annotation(), mark], info)
    bases = (_Speaking, config)
    model: Any = create_model(config.__name__, __base__=bases, **shown)
    default = None
    if values:
        default = model.model_construct(
            **{
                name: values[name] if name in values else _default(info)
                for name, info in model.model_fields.items()
            }
        )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                model,
                prog=f"metaensemble {command}",
                description=inspect.cleandoc(config.__doc__ or ""),
                args=list(arguments),
                default=default,
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise InputError(_sentence(complaint.getvalue(), command)) from stop
    except (_WrongValueError, ValidationError) as error:
        text = str(error) if isinstance(error, _WrongValueError) else _first(error)
        raise InputError(f"{text}; see: metaensemble {command} --help") from error


class _WrongValueError(Exception):
    """A wrong value in one sentence; no ValueError, which tyro would box."""


class _Speaking(Config):
    """A config that tells of a wrong value in our words."""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _WrongValueError(_first(error)) from error


def _sentence(box: str, command: str) -> str:
    """Return tyro's framed complaint as one sentence."""
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()]
    ends = [i for i, line in enumerate(lines) if i and set(line) <= {"─"}]
    said = " ".join(lines[1 : ends[0] if ends else None]).rstrip(".")
    flags = [line.split(" ")[0] for line in lines if line.startswith("--")]
    help_ = f"see: metaensemble {command} --help"
    if said.startswith("Missing"):
        named = ", ".join(flags) or said
        return f"all required options must be given, but {named} is missing; {help_}"
    if said.startswith("Unrecognized") and flags:
        help_ = f"did you mean {flags[0]}? {help_}"
    said = said[:1].lower() + said[1:] or "they are not"
    return f"options must be those of metaensemble {command}, but: {said}; {help_}"


def _default(info: Any) -> Any:
    if info.is_required():
        return tyro.MISSING
    return info.get_default(call_default_factory=True)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    message = one_line(first["msg"].removeprefix("Value error, "), 700)
    if first["type"] == "value_error" and not first["loc"]:
        return message  # of a validator of ours, a whole sentence
    message = message[0].lower() + message[1:]
    place = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    where = f"{one_line(place)}: " if place else ""
    return f"{where}{message}, but got {one_line(repr(first['input']))}"
