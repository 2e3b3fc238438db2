from collections.abc import Callable
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
from metaensemble.data import ImageData, Normalization
from metaensemble.merging import Bench, Judged, Merged, OtFusion
from metaensemble.metrics import Measured
from metaensemble.teachers import Ensemble, Member, OutputCache, save_member
from metaensemble.teachers.member import build_from


def permuted(member: Member, path: Path) -> Member:
    spec = derive_permutations(member.network(), member.info.input_shape)
    hidden = apply_permutations(spec, random_permutations(spec, 1), member.state())
    return save_member(path, hidden, member.info)


def logits_of(info: Member, state: State, data: ImageData) -> torch.Tensor:
    network = build_from(info.info).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        return network(data.normalization(data.validation.batch(torch.arange(6))))


def measured(accuracy: float) -> Measured:
    return Measured(accuracy=accuracy, top5=1.0, nll=1.0, brier=0.5, ece=0.1, count=6)


@pytest.fixture
def widths(tmp_path: Path, make_member: Callable[..., Member]) -> Ensemble:
    """Members of widths 4, 8 and 6."""
    return Ensemble(
        tuple(
            make_member(
                tmp_path / f"{seed}.safetensors", seed, f"convnet,width={width}"
            )
            for seed, width in enumerate((4, 8, 6))
        )
    )


@pytest.mark.parametrize("matching", ["activations", "weights"])
@pytest.mark.parametrize("plan", ["whole", "exact"])
@pytest.mark.parametrize("name", ["mlp,width=8", "convnet,width=4", "wrn16_1"])
def test_permuted_copies_fuse_to_the_network(
    tmp_path, make_member, blind, name, matching, plan
):
    member = make_member(tmp_path / "one.safetensors", 0, name)
    copy = permuted(member, tmp_path / "copy.safetensors")
    method = OtFusion(
        reference="first", matching=matching, plan=plan, reference_share=0.3
    )
    merged = method.merge(Ensemble((member, copy)), blind)
    for key, tensor in member.state().items():
        torch.testing.assert_close(merged.state[key], tensor)


@pytest.mark.parametrize("plan", ["whole", "exact", "sinkhorn"])
@pytest.mark.parametrize("matching", ["activations", "weights"])
def test_members_of_three_widths_take_the_references(
    widths, digits, blind, matching, plan
):
    method = OtFusion(
        reference="widest", matching=matching, plan=plan, reference_share=0.5
    )
    merged = method.merge(widths, blind)
    assert merged.info == widths.members[1].info
    assert merged.notes == ("reference 1.safetensors, its share 0.5",)
    assert torch.isfinite(logits_of(widths.members[1], merged.state, digits)).all()
    first = OtFusion(reference="first", reference_share=0.5).merge(widths, blind)
    assert first.info == widths.members[0].info


def test_the_share_of_the_reference_is_kept(widths, blind):
    def fused(share: float) -> torch.Tensor:
        method = OtFusion(reference="first", reference_share=share)
        return method.merge(widths, blind).state["conv2.weight"].double()

    own = widths.members[0].state()["conv2.weight"].double()
    near, far = fused(1 - 1e-9), fused(0.5)
    torch.testing.assert_close(near, own)
    torch.testing.assert_close(fused(0.75), (own + far) / 2)


def test_the_best_member_is_the_reference(widths, judging):
    best = widths.members[2].state()["fc.bias"]

    def judge(merged: Merged) -> Measured:
        return measured(float(torch.equal(merged.state["fc.bias"], best)))

    merged = OtFusion(reference_share=0.5).merge(widths, judging(judge))
    assert merged.info == widths.members[2].info


def test_the_share_is_the_one_with_the_smallest_divergence(widths, digits, tmp_path):
    own = widths.members[0].state()["fc.bias"].double()
    full = OtFusion(reference="first", reference_share=0.5)
    lines: list[str] = []

    def judge(merged: Merged) -> Judged:
        # the share, read off the merged bias
        rest = (merged.state["fc.bias"] - own) / (halfway - own) / 2
        return Judged(measured(0.5), abs(float(1 - rest.mean()) - 0.7))

    bench = Bench(digits, judge, OutputCache(tmp_path / "cache"), say=lines.append)
    halfway = full.merge(widths, bench).state["fc.bias"].double()
    merged = OtFusion(reference="first").merge(widths, bench)
    assert merged.notes == ("reference 0.safetensors, its share 0.7",)
    assert [line[:10] for line in lines] == [
        f"share {share}" for share in ("0.33", "0.50", "0.60", "0.70", "0.80", "0.90")
    ]


def test_the_real_bench_fuses_widths_of_trained_statistics(widths, digits, real_bench):
    method = OtFusion(images=40)
    bench = real_bench(digits, widths, method)
    merged = method.merge(widths, bench)
    again = method.merge(widths, bench)
    assert all(torch.equal(merged.state[k], again.state[k]) for k in merged.state)
    assert 0 <= bench.judge(merged).measured.accuracy <= 1


def test_one_member_is_refused(widths, blind):
    with pytest.raises(InputError, match="needs at least two members, but got one"):
        OtFusion().merge(widths.subset([0]), blind)


def test_members_of_other_depths_are_refused(tmp_path, make_member, widths, blind):
    deeper = make_member(tmp_path / "deep.safetensors", 0, "mlp,width=8,depth=3")
    shallow = make_member(tmp_path / "flat.safetensors", 0, "mlp,width=8")
    method = OtFusion(reference="first")
    with pytest.raises(
        InputError, match=r"one depth .* only the reference has 'hidden.4.*kd"
    ):
        method.merge(Ensemble((deeper, shallow)), blind)
    with pytest.raises(InputError, match=r"one depth .* choose --method kd"):
        method.merge(Ensemble((shallow, widths.members[0])), blind)


def test_members_of_other_inputs_are_refused(tmp_path, widths, blind):
    first, second, _ = widths.members
    other = second.info.model_copy(
        update={"normalization": Normalization(mean=(0.5,), std=(0.25,))}
    )
    moved = save_member(tmp_path / "moved.safetensors", second.state(), other)
    with pytest.raises(InputError, match=r"share one input normalisation, but .*moved"):
        OtFusion().merge(Ensemble((first, moved)), blind)
