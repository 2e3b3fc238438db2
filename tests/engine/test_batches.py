import torch

from metaensemble.data import Augmentation, TensorSplit
from metaensemble.engine import TrainingBatches
from metaensemble.methods import Batch
from metaensemble.teachers import Ensemble, OutputCache


def equal(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.inputs, two.inputs)
        and torch.equal(one.labels, two.labels)
        and (one.teacher_logits is None) == (two.teacher_logits is None)
        and (
            one.teacher_logits is None
            or two.teacher_logits is None
            or torch.equal(one.teacher_logits, two.teacher_logits)
        )
    )


def test_a_batch_is_a_function_of_seed_and_step(batches, ensemble):
    forward, backward = batches(ensemble), batches(ensemble, cache="another")
    steps = range(8)
    first = {step: forward(step) for step in steps}
    second = {step: backward(step) for step in reversed(steps)}
    torch.manual_seed(0)  # the global generator plays no part
    again = {step: forward(step) for step in steps}
    assert all(equal(first[step], second[step]) for step in steps)
    assert all(equal(first[step], again[step]) for step in steps)
    assert not equal(first[0], batches(ensemble, seed=1)(0))
    assert not equal(first[0], first[1])


def test_teacher_logits_are_those_of_the_very_images(batches, ensemble, digits):
    made = batches(ensemble)
    for step in (0, 4, 7):
        batch = made(step)
        assert batch.teacher_logits is not None
        with torch.no_grad():  # all have the normalisation of the student
            direct = [m.network()(batch.inputs) for m in ensemble.members]
        assert batch.teacher_logits.shape == (3, 16, 10)
        assert torch.allclose(batch.teacher_logits, torch.stack(direct), atol=1e-5)


def test_a_teacher_gets_images_in_its_own_normalisation(
    batches, ensemble, digits, tmp_path
):
    other = digits.normalization.model_copy(update={"mean": (0.9,)})
    made = TrainingBatches(
        digits.train,
        Augmentation(),
        other,
        16,
        0,
        teachers=ensemble,
        cache=OutputCache(tmp_path / "cache"),
    )
    batch, plain = made(0), batches(ensemble).cache
    assert batch.teacher_logits is not None
    whole = plain.logits(ensemble.members[0], digits.train)
    found = [any(torch.equal(row, r) for r in whole) for row in batch.teacher_logits[0]]
    assert all(found)


def test_an_epoch_sees_each_image_once(batches, digits):
    made = batches()
    assert made.steps_per_epoch == 54 // 16
    labels = torch.cat([made(step).labels for step in range(3)])
    assert len(labels) == 48
    counts = torch.bincount(labels, minlength=10)
    assert bool((counts <= torch.bincount(digits.train.labels, minlength=10)).all())


def test_a_batch_larger_than_the_split_is_the_split(digits):
    made = TrainingBatches(
        digits.train, digits.augmentation, digits.normalization, 1000, 0
    )
    assert made.steps_per_epoch == 1
    assert len(made(0).labels) == len(digits.train)


def test_views_bound_the_teachers_passes(batches, ensemble):
    made = batches(ensemble, views=2)
    for step in range(6 * made.steps_per_epoch):
        made(step)
    assert made.cache.images_asked == made.cache.images_run == 2 * 3 * 54
    warm = batches(ensemble, views=2)
    warm(0)
    assert warm.cache.images_asked == 3 * 54
    assert warm.cache.images_run == 0


def test_without_views_every_epoch_is_new(batches, ensemble):
    made = batches(ensemble, views=0)
    for step in range(3 * made.steps_per_epoch):
        made(step)
    assert made.cache.images_run == 3 * 3 * 54


def test_without_augmentation_one_view_is_enough(ensemble, digits, tmp_path):
    made = TrainingBatches(
        digits.train,
        Augmentation(),
        digits.normalization,
        16,
        0,
        teachers=ensemble,
        cache=OutputCache(tmp_path / "cache"),
        views=8,
    )
    for step in range(6):
        made(step)
    assert made.views == 1
    assert made.cache is not None
    assert made.cache.images_run == 3 * 54


def test_a_view_comes_back_after_its_turn(digits):
    images, labels = digits.train.images[:16], digits.train.labels[:16]
    made = TrainingBatches(
        TensorSplit(images, labels),
        Augmentation(pad=1),
        digits.normalization,
        16,
        0,
        views=2,
    )

    def pictures(step: int) -> list[list[float]]:
        return sorted(made(step).inputs.flatten(1).tolist())

    assert pictures(0) == pictures(2) != pictures(1)


def test_without_teachers_there_are_no_logits(batches):
    assert batches()(0).teacher_logits is None
    assert isinstance(batches(None).teachers, Ensemble) is False
