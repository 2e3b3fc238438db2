"""Specs by hand: what they must look like, and what the errors say."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaensemble.alignment import (
    derive_permutations,
    load_spec,
    match_weights,
    save_spec,
    spec_for,
)
from metaensemble.core.errors import InputError, MissingFileError

DOCS = Path(__file__).parents[2] / "docs" / "alignment.md"
IMAGE = (1, 8, 8)


class Net(nn.Module):
    """The network of docs/alignment.md, which nothing can trace."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images.flatten(1)))
        if x.max() > 100:
            x = x / x.max()
        return self.second(x)


@pytest.fixture
def documented() -> dict:
    found = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert found
    return json.loads(found[1])


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_the_example_of_the_docs_is_proved_and_matches(tmp_path, documented):
    spec = spec_for(Net(), IMAGE, written(tmp_path / "spec.json", documented))
    a, b = Net().state_dict(), Net().state_dict()
    matching = match_weights(spec, a, b)
    assert matching.objective > matching.history[0]
    with pytest.raises(InputError, match="or give a PermutationSpec by hand"):
        spec_for(Net(), IMAGE)


def test_a_saved_spec_is_read_as_it_was(tmp_path, case_of):
    case = case_of("vit_small_32x32,depth=1,dim=24,mlp_dim=16")
    save_spec(tmp_path / "spec.json", case.spec)
    assert load_spec(tmp_path / "spec.json") == case.spec
    assert spec_for(case.network, case.shape) == case.spec
    assert spec_for(case.network, case.shape, tmp_path / "spec.json") == case.spec


def test_a_derived_spec_is_proved_too():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 2))
    assert spec_for(network, IMAGE) == derive_permutations(network, IMAGE)


AXIS = {"tensor": "first.weight", "dim": 0, "count": 32}


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"axes": [{**AXIS, "dimension": 0}]}, r"groups\.0\.axes\.0\.dimension: Extra"),
        ({"axes": [{"tensor": "first.weight"}]}, r"groups\.0\.axes\.0\.dim: Field"),
        ({"size": 1}, r"groups\.0\.size: Input should be greater than or equal to 2"),
        ({"heads": 5}, "multiple of heads times parts, but 'first' has 32 .* 1 x 5"),
        (
            {"axes": [{**AXIS, "first": 1}]},
            "'first.weight' in 'first' covers channels 1 to 32",
        ),
        ({"axes": [AXIS, AXIS]}, "entry 0 of 'first.weight' dim 0 is in 'first' and"),
        ({"axes": [{**AXIS, "tensor": "one"}]}, "its spec, but lacks 'one'; derive"),
        ({"axes": [{**AXIS, "dim": 1, "offset": 33}]}, "needs at least 65 entries in"),
        ({"axes": [AXIS]}, "must not change its logits, but these groups do: first"),
    ],
)
def test_bad_specs(tmp_path, documented, group, message):
    documented["groups"][0].update(group)
    with pytest.raises(InputError, match=message):
        spec_for(Net(), IMAGE, written(tmp_path / "spec.json", documented))


def test_bad_files(tmp_path, documented):
    with pytest.raises(MissingFileError, match=r"but .*none\.json is none; write one"):
        load_spec(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"broken\.json must be a permutation spec, .*"
    ):
        load_spec(tmp_path / "broken.json")
    twice = {"groups": documented["groups"] * 2}
    with pytest.raises(InputError, match="names of their own, but two are 'first'"):
        load_spec(written(tmp_path / "twice.json", twice))
