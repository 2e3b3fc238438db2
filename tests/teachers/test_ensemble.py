from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.seeds import generator
from metaensemble.core.states import hash_state
from metaensemble.data import ImageData, Normalization
from metaensemble.teachers import (
    Ensemble,
    Member,
    ensemble_log_probs,
    load_ensemble,
    save_member,
)


def changed(member: Member, name: str, **changes: Any) -> Member:
    """Write a member beside another, its record changed."""
    info = member.info.model_copy(update=changes)
    state = {k: v + 0.5 for k, v in member.state().items()}
    return save_member(member.path.with_name(name), state, info)


def test_probabilities_are_averaged():
    # One image: members say (0.9, 0.1) and (0.5, 0.5), on the mean (0.7, 0.3).
    logits = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
    probabilities = ensemble_log_probs(logits).exp()
    torch.testing.assert_close(probabilities, torch.tensor([[0.7, 0.3]]))


def test_logits_are_averaged():
    # The geometric mean: sqrt(0.9 * 0.5) to sqrt(0.1 * 0.5), that is 3 to 1.
    logits = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
    probabilities = ensemble_log_probs(logits, "logits").exp()
    torch.testing.assert_close(probabilities, torch.tensor([[0.75, 0.25]]))


def test_temperature_divides_the_logits_of_each_member():
    logits = torch.tensor([[[8.0, 0.0]], [[0.0, 4.0]]])
    halved = ensemble_log_probs(logits / 2)
    torch.testing.assert_close(ensemble_log_probs(logits, temperature=2.0), halved)
    assert not torch.allclose(halved, ensemble_log_probs(logits))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_log_probabilities_are_normalised_and_indifferent_to_order(average: Any):
    logits = 5 * torch.randn(4, 20, 7, generator=generator("logits"))
    log_probs = ensemble_log_probs(logits, average)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(20))
    torch.testing.assert_close(ensemble_log_probs(logits.flip(0), average), log_probs)
    shifted = logits + torch.randn(4, 20, 1, generator=generator("shifts"))
    torch.testing.assert_close(ensemble_log_probs(shifted, average), log_probs)
    same = logits[:1].expand(3, -1, -1)
    one = logits[0].log_softmax(-1)
    torch.testing.assert_close(ensemble_log_probs(same, average), one)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_loss_of_the_ensemble_is_at_most_the_mean_of_the_members(average: Any):
    # Jensen, for every image and label: log is concave, log-sum-exp convex.
    logits = 5 * torch.randn(4, 20, 7, generator=generator("logits"))
    members = -logits.log_softmax(-1)
    ensemble = -ensemble_log_probs(logits, average)
    assert (ensemble <= members.mean(0) + 1e-5).all()


def test_probabilities_that_underflow_stay_finite():
    logits = torch.tensor([[[0.0, -1000.0]], [[0.0, -2000.0]]])
    log_probs = ensemble_log_probs(logits)
    assert log_probs[0, 1].item() == pytest.approx(-1000 - 0.6931, abs=1e-2)


def test_an_ensemble_is_its_members_in_order(zoo: Ensemble):
    assert len(zoo) == 3
    assert [member.name for member in zoo.members] == [
        "0.safetensors",
        "1.safetensors",
        "2.safetensors",
    ]
    assert zoo.info == zoo.members[0].info
    assert zoo.one_architecture("why") == "mlp,width=8"
    turned = Ensemble(zoo.members, "logits").subset([2, 0])
    assert turned.members == (zoo.members[2], zoo.members[0])
    assert turned.average == "logits"
    logits = torch.randn(2, 4, 10)
    expected = ensemble_log_probs(logits, "logits")
    assert torch.equal(turned.log_probs(logits), expected)


def test_states_are_read_in_order(zoo: Ensemble):
    states = [hash_state(state) for state in zoo.states()]
    assert states == [hash_state(member.state()) for member in zoo.members]


def test_a_folder_stands_for_its_checkpoints(zoo: Ensemble, digits: ImageData):
    folder = zoo.members[0].path.parent
    (folder / "notes.txt").write_text("not a member")
    (folder / ".3.safetensors.77.tmp").write_text("unfinished")
    (folder / ".hidden.safetensors").write_text("hidden")
    assert load_ensemble([folder], data=digits).members == zoo.members


def test_bare_state_dicts_form_an_ensemble(
    tmp_path: Path, zoo: Ensemble, digits: ImageData
):
    folder = tmp_path / "bare"
    folder.mkdir()
    for i, member in enumerate(zoo.members):
        torch.save(member.state(), folder / f"{i}.pt")
    bare = load_ensemble([folder], architecture="mlp,width=8", data=digits)
    assert [member.info.start for member in bare.members] == [None] * 3
    assert [hash_state(s) for s in bare.states()] == [
        hash_state(s) for s in zoo.states()
    ]


def test_fewer_than_two_members(zoo: Ensemble):
    path = zoo.members[0].path
    message = "must have at least 2 members, but got 1; name more member files, or a"
    with pytest.raises(InputError, match=message):
        load_ensemble([path])
    with pytest.raises(InputError, match="but got 0"):
        load_ensemble([])
    assert len(load_ensemble([path], at_least=1)) == 1
    with pytest.raises(InputError, match="must have at least 1 member, but got 0"):
        load_ensemble([], at_least=1)


def test_a_missing_member_and_an_empty_folder(tmp_path: Path, zoo: Ensemble):
    with pytest.raises(MissingFileError, match=r"9\.pt does not exist"):
        load_ensemble([zoo.members[0].path, tmp_path / "9.pt"])
    empty = tmp_path / "empty"
    empty.mkdir()
    message = f"{empty} holds none; make members with: metaensemble teach --out {empty}"
    with pytest.raises(MissingFileError, match=message):
        load_ensemble([empty])


def test_a_file_that_is_named_twice(zoo: Ensemble, monkeypatch: pytest.MonkeyPatch):
    path = zoo.members[0].path
    monkeypatch.chdir(path.parent)
    link = path.with_name("link.safetensors")
    link.symlink_to(path)
    message = "must be different files, but .* is named twice; name each once"
    for paths in ([path, path], [path, Path(path.name)], [path, link]):
        with pytest.raises(InputError, match=message):
            load_ensemble(paths)


def test_files_of_equal_bytes(zoo: Ensemble):
    path = zoo.members[0].path
    copy = path.with_name("copy.safetensors")
    copy.write_bytes(path.read_bytes())
    message = r"copy.safetensors and .*0.safetensors hold the same bytes; leave one out"
    with pytest.raises(InputError, match=message):
        load_ensemble([path, zoo.members[1].path, copy])


def test_members_of_other_classes(zoo: Ensemble):
    first = zoo.members[0]
    state = {
        k: v[:3] if k.startswith("fc") else v for k, v in zoo.members[1].state().items()
    }
    info = first.info.model_copy(update={"classes": ("a", "b", "c")})
    few = save_member(first.path.with_name("few.safetensors"), state, info)
    message = r"but .*few.safetensors has 3 and .*0.safetensors has 10; choose the data"
    with pytest.raises(InputError, match=message):
        load_ensemble([first.path, few.path])
    odd = changed(first, "odd.safetensors", classes=(*"012345678", "ten"))
    message = r"odd.safetensors has 'ten', which .*0.safetensors has not, and lacks '9'"
    with pytest.raises(InputError, match=message):
        load_ensemble([first.path, odd.path])


def test_members_of_other_channels(zoo: Ensemble):
    first = zoo.members[0]
    four = changed(first, "four.safetensors", input_shape=(4, 4, 4))
    message = (
        r"must agree on the channels, but .*four.safetensors takes 4 and "
        r".*0.safetensors has 1; choose other data"
    )
    with pytest.raises(InputError, match=message):
        load_ensemble([first.path, four.path])


def test_members_of_two_architectures_form_an_ensemble_but_share_no_states(
    zoo: Ensemble, make_member: Callable[..., Member]
):
    folder = zoo.members[0].path.parent
    make_member(folder / "3.safetensors", 3, "convnet,width=2")
    mixed = load_ensemble([folder])
    assert len(mixed) == 4
    message = (
        "^soups need one, but .*3.safetensors is convnet,width=2 and .*0.safetensors "
        "is mlp,width=8; choose --method kd for teachers of different architectures"
    )
    with pytest.raises(InputError, match=message):
        mixed.states("soups need one")


def test_members_of_two_normalisations_share_no_states(zoo: Ensemble):
    first = zoo.members[0]
    bright = Normalization(mean=(0.9,), std=(0.1,))
    other = changed(first, "other.safetensors", normalization=bright)
    mixed = load_ensemble([first.path, other.path])
    message = "one architecture and one input normalisation, but .* choose --method kd"
    with pytest.raises(InputError, match=message):
        mixed.states()


def test_weights_add_up_to_one_and_members_without_leave(zoo: Ensemble):
    some = zoo.weighted([3.0, 0.0, 1.0])
    assert some.members == (zoo.members[0], zoo.members[2])
    assert some.shares == some.weights == (0.75, 0.25)
    logits = torch.randn(2, 4, 10, generator=generator("logits"))
    expected = (0.75 * logits[0].softmax(-1) + 0.25 * logits[1].softmax(-1)).log()
    torch.testing.assert_close(some.log_probs(logits), expected)
    warm = 0.75 * (logits[0] / 3).softmax(-1) + 0.25 * (logits[1] / 3).softmax(-1)
    torch.testing.assert_close(some.log_probs(logits, 3.0), warm.log())
    mean = Ensemble(zoo.members, "logits").weighted([3.0, 0.0, 1.0])
    expected = (0.75 * logits[0] + 0.25 * logits[1]).log_softmax(-1)
    torch.testing.assert_close(mean.log_probs(logits), expected)
    assert some.subset([1]).shares == (1.0,)


def test_equal_weights_are_none(zoo: Ensemble):
    assert zoo.weighted([2.0, 2.0, 2.0]) == zoo
    assert zoo.weighted([0.0, 5.0, 5.0]) == zoo.subset([1, 2])
    assert zoo.shares == (1 / 3,) * 3
    weighted = Ensemble(zoo.members, "probabilities", (2,), (0.3, 0.6, 0.1))
    logits = torch.randn(3, 4, 10, generator=generator("logits"))
    heard = Ensemble(zoo.members[:2]).weighted([1.0, 2.0]).log_probs(logits[:2])
    torch.testing.assert_close(weighted.log_probs(logits), heard)  # the third is silent


def test_members_that_changed_on_disk_are_still_compared(zoo: Ensemble):
    first, second, _ = zoo.members
    state = {**second.state(), "extra": torch.ones(1)}
    save_member(second.path, state, second.info)
    message = r"but .*1.safetensors has 'extra' beyond those of .*0.safetensors; choose"
    with pytest.raises(InputError, match=message):
        zoo.states()
    assert first.state().keys() == set(first.tensors)
