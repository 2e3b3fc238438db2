"""Networks as graphs for any number of images."""

import json

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.export import Deployed, info_of, open_written, write_export
from metaensemble.export.capture import RECORD, capture
from metaensemble.export.deployed import deployed


class Moody(nn.Module):
    """Decides by the values that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or what it is not."""
        return x if x.sum() > 0 else -x


def test_a_decision_by_values_is_refused_and_its_module_named(digits):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sequential(Moody()))
    network = Deployed(layers, digits.normalization)
    with pytest.raises(InputError, match=r"fixed graph .* but '2.0' \(Moody\) is not"):
        capture(network, (1, 8, 8))


def test_a_program_is_the_network_for_any_batch(make_member, digits, tmp_path):
    member = make_member(tmp_path / "a.safetensors", 0)
    path = tmp_path / "a.pt2"
    write_export("torch_export", path, member)
    run = open_written("torch_export", path, member.info.architecture)
    network = deployed(member)
    for count in (1, 2, 7):
        images = digits.test.batch(torch.arange(count))
        with torch.inference_mode():
            logits, shares = network(images / 255)
            wanted = member.network()(member.prepare(images))
        assert torch.allclose(run(images / 255), wanted, atol=1e-5)
        assert torch.allclose(logits, wanted, atol=1e-5)
        assert torch.equal(shares, logits.softmax(-1))
    extra = {RECORD: ""}
    torch.export.load(path, extra_files=extra)
    record = json.loads(extra[RECORD])
    assert record["classes"] == list(digits.classes)
    assert record == info_of(member).model_dump(mode="json")
    assert record["student_sha256"] == member.sha256
