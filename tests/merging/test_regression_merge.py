import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaensemble.alignment import (
    apply_permutations,
    derive_permutations,
    random_permutations,
)
from metaensemble.core.errors import InputError
from metaensemble.core.states import State
from metaensemble.data import ImageData, load_data
from metaensemble.merging import AlignedSoup, Bench, RegressionMerge
from metaensemble.teachers import Ensemble, Member, load_ensemble, save_member
from metaensemble.teachers.member import build_from

RealBench = Callable[..., Bench]
MakeMember = Callable[..., Member]


def log_probs(member: Member, state: State, data: ImageData) -> torch.Tensor:
    network = build_from(member.info).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        images = data.normalization(data.validation.batch(torch.arange(6)))
        return network(images).log_softmax(-1)


@pytest.fixture
def zoo(tmp_path: Path, make_member: MakeMember) -> Ensemble:
    paths = [
        make_member(tmp_path / f"{seed}.safetensors", seed, "convnet,width=4").path
        for seed in range(3)
    ]
    return load_ensemble(paths)


@pytest.mark.parametrize(
    "name", ["mlp,width=8", "convnet,width=4", "wrn16_1", "resnet20"]
)
def test_permuted_copies_merge_to_the_network(
    tmp_path: Path,
    digits: ImageData,
    make_member: MakeMember,
    real_bench: RealBench,
    name: str,
):
    one = make_member(tmp_path / "one.safetensors", 0, name)
    spec = derive_permutations(one.network(), one.info.input_shape)
    paths = []
    for seed in range(3):
        state = apply_permutations(spec, random_permutations(spec, seed), one.state())
        paths.append(tmp_path / f"copy-{seed}.safetensors")
        save_member(paths[-1], state, one.info)
    copies = load_ensemble(paths)
    method = RegressionMerge(reference_weight=0.5, ridge=1e-6)
    merged = method.merge(copies, real_bench(digits, copies, method))
    wanted = log_probs(one, one.state(), digits)
    made = log_probs(one, merged.state, digits)
    assert (made - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_it_is_nearer_to_the_ensemble_than_the_aligned_mean(
    zoo: Ensemble, digits: ImageData, real_bench: RealBench
):
    kl = []
    for method in (AlignedSoup(), RegressionMerge()):
        bench = real_bench(digits, zoo, method)
        kl.append(bench.judge(method.merge(zoo, bench)).kl)
    assert kl[1] < 0.7 * kl[0]


def test_the_weight_is_chosen_by_kl_and_told(
    zoo: Ensemble, digits: ImageData, real_bench: RealBench
):
    method = RegressionMerge(images=40)
    bench = real_bench(digits, zoo, method)
    chosen = method.merge(zoo, bench)
    (note,) = chosen.notes
    assert re.fullmatch(r"the targets follow \d.safetensors at .* of \d\.\d\d", note)
    least = bench.judge(chosen).kl
    for weight in (1 / 3, 0.55, 1.0):
        given = RegressionMerge(images=40, reference_weight=weight)
        assert bench.judge(given.merge(zoo, bench)).kl >= least


def test_too_few_images_are_refused(
    zoo: Ensemble, digits: ImageData, real_bench: RealBench
):
    method = RegressionMerge()
    bench = real_bench(digits, zoo, method)
    one = digits.train.subset(torch.arange(1))
    few = replace(bench, data=replace(digits, train=one, unlabelled=None))
    with pytest.raises(InputError, match="needs at least two images, but got 1; give"):
        method.merge(zoo, few)


def test_an_ensemble_of_one_gives_its_own_decisions(
    tmp_path: Path, make_member: MakeMember, real_bench: RealBench
):
    data = load_data("digits", limit_train=60)
    one = load_ensemble(
        [make_member(tmp_path / "one.safetensors", 0, "mlp,width=8").path], at_least=1
    )
    method = RegressionMerge(ridge=1e-6)
    merged = method.merge(one, real_bench(data, one, method))
    member = one.members[0]
    wanted = log_probs(member, member.state(), data)
    made = log_probs(member, merged.state, data)
    assert torch.equal(made.argmax(-1), wanted.argmax(-1))
