"""What a working folder keeps after an error, and what it does not."""

from pathlib import Path

import pytest

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.files import partial_folder
from metaensemble.workflows.options import run_folder


class Work(Config):
    out: Path = Path("run")
    seed: int = 0
    quiet: bool = False


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def fail(out: Path, error: type[BaseException], *names: str) -> None:
    """Make files of these names in a working folder, then fail."""
    with enter(out) as run:
        folder = run.shared
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        raise error("bad")


def enter(out: Path, work: Work | None = None, **extra: object):
    return run_folder(out, work or Work(), overwrite=False, extra=extra)


def test_a_run_appears_when_its_work_is_done(out):
    with enter(out) as run:
        assert run.shared == run.own == partial_folder(out)
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    assert "seed: 0" in (out / "config.yaml").read_text()


def test_refused_input_leaves_nothing(out):
    with pytest.raises(InputError, match="bad"):
        fail(out, InputError, "log.jsonl")
    assert not list(out.parent.iterdir())


def test_refused_input_after_some_work_leaves_the_work(out):
    with pytest.raises(InputError, match="bad"):
        fail(out, InputError, "log.jsonl", "member-0000.safetensors")
    assert (partial_folder(out) / "member-0000.safetensors").exists()


def test_an_interruption_leaves_the_folder_for_the_same_run(out):
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt, "part", "sub/.part.12.tmp")
    with enter(out, Work(quiet=True)) as run:  # quiet changes nothing that is made
        assert (run.shared / "part").exists()
        assert not (run.shared / "sub" / ".part.12.tmp").exists()


def test_another_seed_or_other_members_are_another_run(out):
    with pytest.raises(KeyboardInterrupt), enter(out, members="a"):
        raise KeyboardInterrupt
    with (
        pytest.raises(InputError, match="'seed: 0' became 'seed: 1'"),
        enter(out, Work(seed=1), members="a"),
    ):
        pass
    with (
        pytest.raises(InputError, match="'members: a' became 'members: b'"),
        enter(out, members="b"),
    ):
        pass
