"""What is checked of every file that anybody may have written, before it is read."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from metaensemble.core.errors import InputError

DEEPEST = 64
"""Lists and mappings in one another that a document may have."""
LARGEST_YAML = 2**20
"""Characters of a YAML file; reading so many takes a quarter of a minute."""
UNFOLDING = 100
"""Bytes that a byte of a compressed file may become; images become 2 to 20."""
ALWAYS_AFFORDABLE = 2**26
"""Bytes that a file may become however small it is."""


def refuse_irregular(path: Path, what: str) -> None:
    """Raise `InputError` unless `path` leads to a regular file.

    A folder cannot be read; reading a pipe may wait for ever, a device never ends.

    Args:
        path: an existing path.
        what: opens the message, such as "a checkpoint".
    """
    if path.is_file():
        return
    kind = "a folder" if path.is_dir() else "no regular file"
    raise InputError(f"{what} must be a file, but {path} is {kind}; name a file")


def affordable(size: int) -> int:
    """Return how many bytes a compressed file of `size` bytes may become."""
    return max(ALWAYS_AFFORDABLE, UNFOLDING * size)


def one_line(value: object, most: int = 160) -> str:
    """Return a text, or an error's, on one line of at most so many characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, has a key twice in an object, or is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _refuse_deep(value, DEEPEST)
    return value


def parse_yaml(text: str) -> Any:
    """Return the plain value of a YAML text: no aliases, no tags but YAML's own.

    Raises:
        ValueError: it is none, is too long or nested too deeply, uses an alias (a few
            of which can stand for gigabytes), or has a key twice in a mapping.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it is longer than {LARGEST_YAML} characters")
    try:
        return yaml.load(text, _Plain)
    except ValueError:
        raise
    except Exception as error:  # odd scalars raise half a dozen types
        raise ValueError(one_line(error)) from error


def load_yaml(path: Path) -> Any:
    """Return the plain value of a YAML file; of a huge one only the start is read.

    Raises:
        ValueError: as `parse_yaml`, or the file is no UTF-8.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        return parse_yaml(file.read(LARGEST_YAML + 1))


class _Plain(yaml.SafeLoader):
    """YAML's own types, spelled out."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ValueError(f"line {mark.line + 1} has an alias; write its value out")
        if self.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise _twice(str(getattr(key, "value", "")) for key, _ in node.value)
        return mapping


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _twice(key for key, _ in pairs)
    return value


def _twice(keys: Iterable[str]) -> ValueError:
    key = Counter(keys).most_common(1)[0][0]
    return ValueError(f"it has the key {one_line(key)!r} twice")


def _refuse_deep(value: Any, left: int) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if left == 0:
            raise ValueError("it is nested too deeply")
        for item in value:
            _refuse_deep(item, left - 1)
