from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaensemble.alignment import (
    apply_permutations,
    derive_permutations,
    random_permutations,
)
from metaensemble.core.states import State
from metaensemble.data import ImageData
from metaensemble.merging import AlignedSoup, Bench, uniform_soup
from metaensemble.teachers import Ensemble, Member, load_ensemble, save_member
from metaensemble.teachers.member import build_from


def permuted_copies(member: Member, folder: Path, copies: int) -> Ensemble:
    shape = member.info.input_shape
    spec = derive_permutations(member.network(), shape)
    paths = []
    for seed in range(copies):
        state = apply_permutations(
            spec, random_permutations(spec, seed), member.state()
        )
        paths.append(folder / f"copy-{seed}.safetensors")
        save_member(paths[-1], state, member.info)
    return load_ensemble(paths)


def logits_of(member: Member, state: State, data: ImageData) -> torch.Tensor:
    network = build_from(member.info).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        return network(data.normalization(data.validation.batch(torch.arange(6))))


@pytest.mark.parametrize("name", ["mlp,width=8", "convnet,width=4", "wrn16_1"])
def test_permuted_copies_merge_to_the_network(
    tmp_path: Path,
    digits: ImageData,
    make_member: Callable[..., Member],
    name: str,
    blind: Bench,
):
    member = make_member(tmp_path / "one.safetensors", 0, name)
    copies = permuted_copies(member, tmp_path, 3)
    wanted = logits_of(member, member.state(), digits)

    merged = AlignedSoup().merge(copies, blind)
    torch.testing.assert_close(logits_of(member, merged.state, digits), wanted)

    plain = uniform_soup(copies.states())
    assert not torch.allclose(logits_of(member, plain, digits), wanted, atol=1e-2)


def test_members_of_one_start_keep_their_order(
    tmp_path: Path,
    make_member: Callable[..., Member],
    blind: Bench,
):
    start = make_member(tmp_path / "start.safetensors", 0)
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        make_member(path, seed + 1, start=start)
    members = load_ensemble(paths)
    aligned = AlignedSoup().merge(members, blind).state
    plain = uniform_soup(members.states())
    for name, tensor in plain.items():
        assert torch.equal(aligned[name], tensor)
