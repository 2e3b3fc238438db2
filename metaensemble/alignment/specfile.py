"""Permutation specs as JSON files: for networks that cannot be traced."""

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from metaensemble.alignment.apply import refuse_unfitting
from metaensemble.alignment.groups import PermutationSpec
from metaensemble.alignment.proof import prove
from metaensemble.alignment.trace import derive_permutations
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import write_text
from metaensemble.core.guards import one_line, parse_json


def save_spec(path: Path, spec: PermutationSpec) -> None:
    """Write a spec as indented JSON that `load_spec` reads; defaults are left out."""
    text = spec.model_dump_json(indent=2, exclude_defaults=True)
    write_text(path, text + "\n")


def load_spec(path: Path) -> PermutationSpec:
    """Return the spec in a JSON file, such as one written by hand.

    It is not proved yet: see `spec_for`.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file holds no JSON, or no spec; the message names the place.
    """
    if not path.is_file():
        raise MissingFileError(
            f"a permutation spec must be a JSON file, but {path} is none; write one as "
            "docs/alignment.md describes it"
        )
    try:
        text = path.read_text(encoding="utf-8")
        spec = PermutationSpec.model_validate(parse_json(text))
    except ValueError as error:  # pydantic's is one
        raise InputError(
            f"{path} must be a permutation spec, but{_told(error)}; "
            "docs/alignment.md describes the format"
        ) from error
    for group in spec.groups:
        if group.size > sum(axis.count for axis in group.axes):
            raise InputError(
                f"every channel of a group must be in some axis, but {group.name!r} in "
                f"{path} has {group.size} channels and fewer in its axes; correct it"
            )
    return spec


def _told(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return f": {one_line(error)}"
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    at = f" at {one_line(place)}" if place else ""
    return f"{at}: {first['msg']}"


def spec_for(
    network: nn.Module, input_shape: tuple[int, ...], path: Path | None = None
) -> PermutationSpec:
    """Return a network's permutation spec, proved.

    Args:
        network: maps images (batch, *input_shape) to logits; stays as it is.
        input_shape: channels, height and width of one image.
        path: a JSON file of the spec; None: it is derived.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file holds no spec, the network cannot be traced, or the spec
            does not suit the network.
    """
    if path is None:
        spec = derive_permutations(network, input_shape)
        prove(network, spec, input_shape)
        return spec
    spec = load_spec(path)
    try:
        refuse_unfitting(spec, network.state_dict())  # before anything of its sizes
        prove(network, spec, input_shape)
    except InputError as error:
        raise InputError(f"{path} must suit the network: {error}") from error
    return spec
