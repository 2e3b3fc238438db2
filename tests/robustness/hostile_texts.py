"""Hostile YAML and JSON."""

import json
from pathlib import Path

from case import Case, entering

CASES: list[Case] = []
case = entering(CASES)


def text_case(reader: str, name: str, text: str | bytes, message: str) -> None:
    file = {"yaml": "config.yaml", "permutation spec": "spec.json"}
    content = text if isinstance(text, bytes) else text.encode()

    def spoil(folder: Path) -> None:
        (folder / file.get(reader, "report.json")).write_bytes(content)

    case(reader, message, name)(spoil)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n"
for before, after in zip("abcdefghi", "bcdefghij", strict=True):
    LAUGHS += f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
MERGES = "a: &a {x: 1}\n"
for before, after in zip("abcdefghi", "bcdefghij", strict=True):
    MERGES += f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"

NO_YAML = "must be YAML, but is not"
text_case("yaml", "a billion laughs", LAUGHS, "line 2 has an alias")
text_case("yaml", "merged billions", MERGES, "line 2 has an alias")
text_case("yaml", "deep nesting", "data: " + "[" * 100_000, "nested too deeply")
text_case("yaml", "a key twice", "seed: 1\nseed: 2\n", "has the key 'seed' twice")
text_case("yaml", "no text", b"data: \xff\xfe", NO_YAML)
text_case("yaml", "nothing", "", "must map options to values, but holds None")
text_case("yaml", "a date that is none", "data: 2001-99-99", NO_YAML)
text_case("yaml", "a long text", "x" * 2**21, "longer than 1048576 characters")
text_case("yaml", "a number that is none", "seed: !!int ''", NO_YAML)
text_case("yaml", "too many digits", "seed: " + "9" * 9999, NO_YAML)
text_case("yaml", "a list as a key", "? [a]\n: b", NO_YAML)
text_case("yaml", "infinity", "limit_train: .inf", "limit_train is wrong")
text_case("yaml", "a long key", "x" * 900 + ": 1", "must be an option")
RUN = "!!python/object/apply:os.system ['touch executed']"
text_case("yaml", "code", f"data: {RUN}", NO_YAML)
text_case("yaml", "code as a name", "data: !!python/name:os.system ''", NO_YAML)

DEEP = '{"a":' * 100_000
text_case("report", "deep nesting", DEEP, "must be JSON, but .* nested too deeply")
text_case("report", "a list nested", "[" * 900 + "]" * 900, "nested too deeply")
text_case("report", "a key twice", '{"schema": 1, "schema": 1}', "'schema' twice")
text_case("report", "no object", '"schema"', "has schema None")
text_case("report", "a long schema", '{"schema": "%s"}' % ("x" * 9999), "of schema 1")
text_case("report", "no text", b"\xff\xfe{", "must be JSON")
text_case("report", "a number too long", '{"schema": %s}' % ("9" * 9999), "be JSON")

SPEC = "must be a permutation spec"
BIG = {"name": "hidden.0", "size": 10**12, "axes": []}
COVERED = [{"tensor": "hidden.0.weight", "dim": 0, "count": 10**12}]
text_case("permutation spec", "deep nesting", "[" * 100_000, "nested too deeply")
text_case("permutation spec", "a key twice", '{"groups":[],"groups":[]}', "twice")
text_case("permutation spec", "no text", b"\xff", SPEC)
text_case(
    "permutation spec",
    "channels without axes",
    json.dumps({"groups": [BIG]}),
    "must be in some axis, but 'hidden.0' in .* has 1000000000000 channels",
)
text_case(
    "permutation spec",
    "channels that the network has not",
    json.dumps({"groups": [BIG | {"axes": COVERED}]}),
    "must suit the network: .* needs at least 1000000000000 entries",
)
