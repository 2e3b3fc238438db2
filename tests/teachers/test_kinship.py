from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.teachers import Ensemble, Member, kinship, load_ensemble, save_member
from metaensemble.teachers.kinship import COSINE_OF_KIN, mean_cosine


def forget(ensemble: Ensemble) -> Ensemble:
    """The same members, the records of their starts struck out."""
    members = []
    for member in ensemble.members:
        info = member.info.model_copy(update={"start": None})
        path = member.path.with_name(f"forgotten-{member.name}")
        members.append(save_member(path, member.state(), info))
    return Ensemble(tuple(members))


@pytest.fixture
def family(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Three members of one start."""
    start = make_member(tmp_path / "start.safetensors", 9)
    folder = tmp_path / "family"
    for seed in range(3):
        make_member(folder / f"{seed}.safetensors", seed, start=start)
    return load_ensemble([folder])


def test_members_of_one_start(family: Ensemble):
    kin = kinship(family)
    assert kin.one_start
    assert kin.recorded
    assert kin.regime == "one-start"
    assert kin.cosine > 0.9


def test_independent_members(zoo: Ensemble):
    kin = kinship(zoo)
    assert not kin.one_start
    assert kin.recorded
    assert kin.regime == "independent"
    assert abs(kin.cosine) < 0.2


def test_without_records_the_cosine_decides(zoo: Ensemble, family: Ensemble):
    for ensemble, one_start in ((zoo, False), (family, True)):
        kin = kinship(forget(ensemble))
        assert kin.one_start is one_start
        assert not kin.recorded
        assert kin.cosine == kinship(ensemble).cosine


def test_records_outweigh_the_cosine(family: Ensemble):
    strangers = [
        save_member(
            member.path,
            member.state(),
            member.info.model_copy(update={"start": str(number)}),
        )
        for number, member in enumerate(family.members)
    ]
    kin = kinship(Ensemble(tuple(strangers)))
    assert kin.cosine > COSINE_OF_KIN
    assert not kin.one_start


def test_the_cosine_by_hand():
    states = [
        {"w": torch.tensor([[1.0, 0.0]]), "bias": torch.tensor([9.0])},
        {"w": torch.tensor([[1.0, 1.0]]), "bias": torch.tensor([-9.0])},
        {"w": torch.tensor([[0.0, 2.0]]), "bias": torch.tensor([9.0])},
    ]
    # 45, 90 and 45 degrees; biases do not count.
    assert mean_cosine(states) == pytest.approx(2 * 0.5**0.5 / 3)
    assert mean_cosine(states[:1]) == 1.0


def test_kinship_needs_one_architecture(
    zoo: Ensemble, make_member: Callable[..., Member]
):
    other = make_member(
        zoo.members[0].path.with_name("9.safetensors"), 9, "mlp,depth=1"
    )
    mixed = Ensemble((*zoo.members, other))
    with pytest.raises(InputError, match="must share one architecture to be compared"):
        kinship(mixed)
