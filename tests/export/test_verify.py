"""What counts as the same logits and the same decision."""

import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.export import verify
from metaensemble.export.deployed import deployed
from metaensemble.export.formats import runner_in_torch
from metaensemble.export.verify import compared, random_images


@pytest.fixture(scope="module")
def member(make_member, tmp_path_factory):
    return make_member(tmp_path_factory.mktemp("member") / "a.safetensors", 0)


def test_the_same_logits_are_the_same():
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    seen = compared(logits, logits.clone())
    assert (seen.images, seen.max_difference) == (2, 0)
    assert (seen.unequal_decisions, seen.ties) == (0, 0)


def test_differences_decisions_and_ties_are_counted_by_hand():
    want = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0], [100.0, 99.9995]])
    got = torch.tensor([[0.0, 0.5], [5.0, 5.1], [0.0, 2.0], [99.0, 99.5]])
    seen = compared(want, got)
    # Image 0 is decided otherwise; 1 and 3 are too near to call: 5e-4 <= 1e-5 * 100.
    assert (seen.unequal_decisions, seen.ties) == (1, 2)
    assert seen.max_difference == pytest.approx(1.0)


def test_a_faithful_file_passes_on_every_image(member, digits):
    sizes = []
    run = runner_in_torch(deployed(member))

    def watched(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        assert pixels.dtype == torch.float32
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        return run(pixels)

    seen = verify(member, watched, digits.test)
    assert seen.images == sum(sizes) == len(digits.test)
    assert sizes[:3] == [1, 3, 100]
    assert seen.max_difference < 1e-5
    assert seen.unequal_decisions == 0


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_other_logits_are_refused(member, digits, wrong):
    run = runner_in_torch(deployed(member))
    with pytest.raises(InputError, match=r"logits must be the student's, but .* wri"):
        verify(member, lambda pixels: run(pixels) + wrong, digits.test)


def test_a_file_for_one_batch_size_is_refused(member, digits):
    run = runner_in_torch(deployed(member))

    def fixed(pixels: Tensor) -> Tensor:
        if len(pixels) != 1:
            raise RuntimeError("got 3 for batch, expected 1")
        return run(pixels)

    with pytest.raises(InputError, match="of any size, but on one of 3 it fails"):
        verify(member, fixed, digits.test)


def test_images_of_another_size_are_resized_alike(make_member, tmp_path):
    wide = make_member(tmp_path / "a.safetensors", 0, "mlp,width=8")
    seen = verify(wide, runner_in_torch(deployed(wide)), random_images((1, 12, 20)))
    assert seen.max_difference < 1e-5


def test_random_images_are_the_same_at_every_call():
    one, two = random_images((3, 4, 4)), random_images((3, 4, 4))
    assert one.fingerprint == two.fingerprint
    assert len(one) == 256
