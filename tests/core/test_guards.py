"""What is checked of files before they are read; hostile ones: tests/robustness."""

from pathlib import Path

import pytest

from metaensemble.core.guards import LARGEST_YAML, load_yaml


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


def test_a_yaml_file_is_read_as_its_plain_value(path: Path):
    path.write_text("seed: 1\nname: grün\nparts: [a, 0.5, null]\n", encoding="utf-8")
    assert load_yaml(path) == {"seed": 1, "name": "grün", "parts": ["a", 0.5, None]}


def test_an_empty_yaml_file_is_nothing(path: Path):
    path.touch()
    assert load_yaml(path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2\n", "has the key 'a' twice"),
        (b"a: &b [1]\nc: *b\n", "line 2 has an alias; write its value out"),
        (b"a: !!python/name:os.system\n", "could not determine a constructor"),
        (b"a: \xff\n", "can't decode byte 0xff"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(path: Path, content: bytes, message: str):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_yaml(path)


def test_of_a_huge_yaml_file_only_the_start_is_read(path: Path):
    path.write_text("#")
    with path.open("r+b") as file:
        file.truncate(2**40)  # a terabyte, of which the disk holds nothing
    with pytest.raises(ValueError, match=f"longer than {LARGEST_YAML} characters"):
        load_yaml(path)


def test_a_yaml_file_at_the_limit_is_read(path: Path):
    path.write_text("#" * LARGEST_YAML)
    assert load_yaml(path) is None


def test_a_missing_yaml_file_is_an_os_error(path: Path):
    with pytest.raises(FileNotFoundError):
        load_yaml(path)
