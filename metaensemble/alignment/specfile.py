"""Permutation specs as JSON files: for networks that cannot be traced."""

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from metaensemble.alignment.groups import PermutationSpec
from metaensemble.alignment.proof import prove
from metaensemble.alignment.trace import derive_permutations
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import write_text


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
        return PermutationSpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        at = f" at {place}" if place else ""
        raise InputError(
            f"{path} must be a permutation spec, but{at}: {first['msg']}; "
            "docs/alignment.md describes the format"
        ) from error


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
    else:
        spec = load_spec(path)
    prove(network, spec, input_shape)
    return spec
