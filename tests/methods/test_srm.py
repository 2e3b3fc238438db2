import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.engine import RunLog
from metaensemble.methods import Batch, Srm, Task
from metaensemble.methods.dictionary import (
    Dictionary,
    image_labels,
    num_codewords,
    num_kept,
    pixel_labels,
    sparse,
)
from metaensemble.methods.srm import DictionaryLearner, InitialisationLearner
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.registry import make_method
from metaensemble.workflows.students import distil_student

CONVNET = "convnet,width=4"


@pytest.fixture(scope="module")
def members(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [make_member(folder / f"{i}.safetensors", i, CONVNET) for i in range(2)]


@pytest.fixture
def batch(digits) -> Batch:
    pixels, labels = digits.train.images[:6], digits.train.labels[:6]
    return Batch(0, digits.normalization(pixels), labels, pixels=pixels)


@pytest.fixture
def stages_of(digits):
    """The method's stages, drawn with fixed seeds."""

    def make(method, ensemble, student=None):
        task = Task(digits.input_shape, digits.train.labels)
        student = student or init_model(CONVNET, 10, digits.input_shape, 7)
        torch.manual_seed(0)
        return list(method.stages(student, ensemble, task))

    return make


@pytest.fixture
def dictionary() -> Dictionary:
    """Of 12 codewords for maps of 6 channels."""
    torch.manual_seed(0)
    dictionary = Dictionary(6, 12)
    nn.init.constant_(dictionary.offset, 0.25)
    return dictionary


@pytest.fixture
def maps() -> torch.Tensor:
    """Three maps of 6 channels, 4 x 5 pixels."""
    return torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))


def test_a_code_is_the_sigmoid_of_the_scores(dictionary, maps):
    code = dictionary.code(maps)
    phi, offset = dictionary.codewords, dictionary.offset
    pixel = (phi.T @ maps[1, :, 3, 2] + offset).sigmoid()
    assert code.shape == (3, 12, 4, 5)
    assert torch.allclose(code[1, :, 3, 2], pixel, atol=1e-6)
    assert bool(((code > 0) & (code < 1)).all())


@pytest.mark.parametrize("kept", [1, 3, 12])
def test_a_sparse_code_keeps_the_largest_values(dictionary, maps, kept):
    code = dictionary.code(maps)
    few = sparse(code, kept)
    assert bool(((few != 0).sum(1) == kept).all())
    assert torch.allclose(few.sum(1), code.topk(kept, dim=1).values.sum(1))
    assert torch.equal(few[few != 0], code[few != 0])


def test_ties_keep_more():
    code = torch.tensor([0.5, 0.5, 0.2, 0.9]).reshape(1, 4, 1, 1)
    assert sparse(code, 2).flatten().tolist() == pytest.approx([0.5, 0.5, 0, 0.9])


@pytest.mark.parametrize(
    ("channels", "ratio", "kept", "expected"),
    [(128, 2, 0.02, 5), (256, 1.5, 0.01, 3), (16, 2, 0.02, 1), (10, 2, 1, 20)],
)
def test_k_is_a_part_of_the_codewords_and_one_at_least(channels, ratio, kept, expected):
    assert num_kept(channels, float(ratio), float(kept)) == expected


def test_a_dictionary_has_a_ratio_of_codewords_per_channel():
    assert [num_codewords(9, 1.5), num_codewords(8, 1.5)] == [14, 12]


@pytest.mark.parametrize("kept", [1, 4])
def test_labels_of_pixels_and_images(dictionary, maps, kept):
    code = dictionary.code(maps)
    pixels, images = pixel_labels(code), image_labels(code, kept)
    assert pixels.shape == (3, 4, 5)
    assert pixels.dtype == torch.int64
    assert 0 <= int(pixels.min()) <= int(pixels.max()) < 12
    assert images.shape == (3, 12)
    assert bool(((images >= 0) & (images <= 1)).all())
    assert bool((images.sum(1) <= kept).all())


def test_a_pixels_label_is_its_own_affair(dictionary, maps):
    other = maps.clone()
    other[:, :, 2, 3] = -3 * other[:, :, 2, 3]
    changed = pixel_labels(dictionary.code(maps)) != pixel_labels(
        dictionary.code(other)
    )
    assert changed[:, 2, 3].any()
    changed[:, 2, 3] = False
    assert not changed.any()


def test_pixels_in_another_order_have_their_labels_in_that_order(dictionary, maps):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    moved = maps.flatten(2)[:, :, order].unflatten(2, (4, 5))
    code, after = dictionary.code(maps), dictionary.code(moved)
    assert torch.equal(
        pixel_labels(after),
        pixel_labels(code).flatten(1)[:, order].unflatten(1, (4, 5)),
    )
    assert torch.allclose(image_labels(after, 3), image_labels(code, 3), atol=1e-6)


def test_height_and_width_are_not_exchanged(dictionary, maps):
    turned = pixel_labels(dictionary.code(maps.transpose(2, 3)))
    assert torch.equal(turned, pixel_labels(dictionary.code(maps)).transpose(1, 2))


def test_with_all_codewords_kept_the_reconstruction_is_dense(dictionary, maps):
    phi, offset = dictionary.codewords, dictionary.offset
    expected = torch.stack(
        [
            (phi @ (phi.T @ x.flatten(1) + offset).sigmoid()).reshape(x.shape)
            for x in maps
        ]
    )
    got = dictionary.decode(sparse(dictionary.code(maps), 12))
    assert torch.allclose(got, expected, atol=1e-5)


def test_there_are_three_stages_and_the_last_has_the_methods_settings(
    stages_of, members
):
    method = Srm(epochs=3, dictionary_epochs=1, init_epochs=2, batch_size=32)
    first, second, last = stages_of(method, Ensemble(tuple(members)))
    names = [first.name, second.name, last.name]
    assert names == ["srm-dictionaries", "srm-initialisation", "srm"]
    assert [s.settings.epochs for s in (first, second, last)] == [1, 2, 3]
    assert [s.settings.live for s in (first, second, last)] == [True, True, False]
    assert [s.learner.preparation for s in (first, second, last)] == [True, True, False]
    assert [s.settings.optimizer for s in (first, second, last)] == [
        "adamw",
        "adamw",
        "sgd",
    ]
    assert {s.settings.batch_size for s in (first, second, last)} == {32}
    assert last.settings is method


def test_dictionaries_learn_and_nothing_else_changes(stages_of, members, batch):
    student = init_model(CONVNET, 10, (1, 8, 8), 7)
    untouched = {name: value.clone() for name, value in student.state_dict().items()}
    first, *_ = stages_of(Srm(), Ensemble(tuple(members)), student)
    learner = first.learner
    assert isinstance(learner, DictionaryLearner)
    names = [name for name, _ in learner.named_parameters()]
    assert len(names) == 2 * 3 * 2  # teachers, maps, codewords and offset
    assert all(name.startswith("dictionaries.") for name in names)
    assert set(learner.state_dict()) == set(names)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.05, weight_decay=0)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = learner.train()(batch)["reconstruction"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for teacher in learner.source.teachers:
        assert not teacher.network.training
        assert all(p.grad is None for p in teacher.network.parameters())
        state = teacher.member.state()
        for name, value in teacher.network.state_dict().items():
            assert torch.equal(value, state[name]), name  # buffers, too
    assert learner.export() is student
    for name, value in student.state_dict().items():
        assert torch.equal(value, untouched[name])


def test_several_teachers_count_by_their_weights(stages_of, members, batch):
    both = Ensemble(tuple(members), weights=(0.25, 0.75))
    first, second, _ = stages_of(Srm(), both)
    together = [first.learner(batch), second.learner.eval()(batch)]
    alone = []
    for i in range(2):
        one, two, _ = stages_of(Srm(), both.subset([i]))
        dictionaries, adapters = one.learner, two.learner
        dictionaries.dictionaries[0].load_state_dict(
            first.learner.dictionaries[i].state_dict()
        )
        for at, adapter in enumerate(adapters.adapters):
            adapter.load_state_dict(second.learner.adapters[3 * i + at].state_dict())
        alone.append([dictionaries(batch), adapters.eval()(batch)])
    for stage, losses in enumerate(together):
        for name, value in losses.items():
            expected = 0.25 * alone[0][stage][name] + 0.75 * alone[1][stage][name]
            assert torch.allclose(value, expected, rtol=1e-4), name


def test_the_initialisation_by_hand(stages_of, members, batch):
    first, second, _ = stages_of(Srm(codewords=3, kept=0.1), Ensemble((members[0],)))
    learner = second.learner.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for name, module in learner.student.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.setdefault(
                name, []
            ).append(output)
        )
    losses = learner(batch)
    pixel = image = torch.tensor(0.0)
    maps = [found[tap.module][tap.call - 1] for tap in learner.taps]
    codes = list(first.learner.codes(batch))
    assert len(codes) == len(maps) == 3
    for own, adapter, (_, _, code, kept, value) in zip(
        maps, learner.adapters, codes, strict=True
    ):
        channels = value.shape[1]
        assert kept == max(1, int(channels * 3 * 0.1))
        p = (
            torch.einsum("dk,bdhw->bkhw", adapter.codewords, own) + adapter.offset
        ).sigmoid()
        rows = p.permute(0, 2, 3, 1).flatten(0, 2)
        pixel = pixel + F.cross_entropy(rows, code.argmax(1).flatten())
        smallest = code.topk(kept, dim=1).values[:, -1:]
        target = (code * (code >= smallest)).mean((2, 3))
        mean = p.mean((2, 3))
        crossed = target * mean.log() + (1 - target) * (1 - mean).log()
        image = image - crossed.mean()
    assert torch.allclose(losses["pixel"], pixel, rtol=1e-4)
    assert torch.allclose(losses["image"], image, rtol=1e-4)


@pytest.mark.parametrize(
    ("which", "parts"),
    [("pixel", {"pixel"}), ("image", {"image"}), ("both", {"pixel", "image"})],
)
def test_the_initialisation_knows_no_classes(stages_of, members, batch, which, parts):
    _, second, _ = stages_of(Srm(init_labels=which), Ensemble(tuple(members)))
    learner = second.learner.eval()
    one = learner(batch)
    unlabelled = Batch(0, batch.inputs, torch.full((6,), -1), pixels=batch.pixels)
    other = learner(unlabelled)
    assert one.keys() == parts
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_initialisation_trains_the_student_and_no_teacher(
    stages_of, members, batch
):
    first, second, _ = stages_of(Srm(), Ensemble(tuple(members)))
    learner = second.learner
    assert isinstance(learner, InitialisationLearner)
    torch.stack(list(learner.train()(batch).values())).sum().backward()
    trained = {name for name, p in learner.named_parameters() if p.grad is not None}
    named = {name for name, _ in learner.named_parameters()}
    assert {name for name in named - trained if ".fc." not in name} == set()
    assert all(p.grad is None for p in first.learner.parameters())
    for teacher in first.learner.source.teachers:
        assert not teacher.network.training
        assert all(p.grad is None for p in teacher.network.parameters())


def test_the_pixels_loss_has_a_floor():
    # values in (0, 1) as logits: at best 1 for the codeword and 0 for all the others
    p, right = torch.zeros(1, 256, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    p[0, 0] = 1
    floor = math.log(1 + 255 / math.e)
    assert F.cross_entropy(p, right).item() == pytest.approx(floor, rel=1e-5)
    assert floor == pytest.approx(4.55, abs=0.01)


def test_alpha_weighs_distillation_against_labels(stages_of, members, batch):
    student = init_model(CONVNET, 10, (1, 8, 8), 7).eval()
    teachers = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(3))
    seen = Batch(0, batch.inputs, batch.labels, teachers)
    ensemble = Ensemble(tuple(members))
    *_, last = stages_of(Srm(alpha=0), ensemble, student)
    z = student(batch.inputs)
    crossed = F.cross_entropy(z, batch.labels)
    losses = last.learner.eval()(seen)
    assert losses.keys() == {"label"}
    assert torch.allclose(losses["label"], crossed)
    target = (teachers / 4).softmax(-1).mean(0)
    divergence = (target * (target.log() - (z / 4).log_softmax(-1))).sum(-1).mean()
    *_, last = stages_of(Srm(alpha=0.75, temperature=4), ensemble, student)
    losses = last.learner.eval()(seen)
    assert torch.allclose(losses["label"], 0.25 * crossed)
    assert torch.allclose(losses["distillation"], 0.75 * 16 * divergence, rtol=1e-4)
    *_, last = stages_of(Srm(alpha=1), ensemble, student)
    assert last.learner.eval()(seen).keys() == {"distillation"}


def test_adapters_are_dropped(stages_of, members, digits):
    plain = init_model(CONVNET, 10, digits.input_shape, 0).state_dict()
    for stage in stages_of(Srm(), Ensemble(tuple(members))):
        assert stage.learner.export().state_dict().keys() == plain.keys()


@pytest.mark.parametrize(
    "fields", [{"alpha": 1.1}, {"alpha": -0.1}, {"temperature": 0}, {"kept": 0}]
)
def test_values_out_of_range_are_refused(fields):
    (name,) = fields
    with pytest.raises(
        InputError,
        match=f"hyperparameters of srm must be valid, but {name}: Input should be",
    ):
        make_method("srm", **fields)


def test_maps_of_different_sizes_are_averaged_and_said(
    digits, members, make_member, tmp_path
):
    other = make_member(tmp_path / "mlp.safetensors", 5, "mlp,width=12")
    options = RunOptions(device="cpu", cache=tmp_path / "cache", quiet=True)
    session = open_session(options, digits, None, RunLog(quiet=True))
    method = Srm(epochs=0.1, dictionary_epochs=0.1, init_epochs=0.1)
    student = distil_student(session, Ensemble((members[0], other)), method, CONVNET)
    (note,) = student.notes
    assert note.startswith("srm averaged maps of different sizes to the smaller one's")
    assert "mlp.safetensors's" in note
    assert "(1 x 1) and the student's" in note
    same = distil_student(session, Ensemble((members[0],)), method, CONVNET)
    assert same.notes == ()
