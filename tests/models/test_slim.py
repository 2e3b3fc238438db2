from pathlib import Path

import pytest
import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models import Architecture, build, init_model
from metaensemble.models.slim import apply_slim, parse_slim, slim_text, widths
from metaensemble.teachers import MemberInfo, load_member, save_member

BLOCK = "layer1.0.conv1:16>7+.bn1:7+.conv2:7>16"


def test_a_text_says_inputs_and_outputs_of_each_layer():
    assert parse_slim(f"{BLOCK}+fc:64>10") == {
        "layer1.0.conv1": (16, 7),
        "layer1.0.bn1": (7, 7),
        "layer1.0.conv2": (7, 16),
        "fc": (64, 10),
    }


def test_texts_are_read_back():
    network = build("resnet20", 10, (3, 32, 32))
    for text in (BLOCK, "conv1:3>9+bn1:9", "fc:60>10"):
        assert slim_text(parse_slim(text), network) == text


def test_a_slim_network_has_the_names_of_the_full_one_and_these_shapes():
    full = build("resnet20", 10, (3, 32, 32))
    slim = build(f"resnet20,slim={BLOCK}", 10, (3, 32, 32))
    shapes = {key: tuple(value.shape) for key, value in slim.state_dict().items()}
    before = {key: tuple(value.shape) for key, value in full.state_dict().items()}
    assert list(shapes) == list(before)
    differ = {key: shape for key, shape in shapes.items() if shape != before[key]}
    assert differ == {
        "layer1.0.conv1.weight": (7, 16, 3, 3),
        "layer1.0.bn1.weight": (7,),
        "layer1.0.bn1.bias": (7,),
        "layer1.0.bn1.running_mean": (7,),
        "layer1.0.bn1.running_var": (7,),
        "layer1.0.conv2.weight": (16, 7, 3, 3),
    }
    images = torch.randn(2, 3, 32, 32)
    assert slim(images).shape == (2, 10)  # in training mode, too
    assert widths(slim.get_submodule("layer1.0.conv1")) == (16, 7)


def test_depthwise_convolutions_keep_a_group_per_channel():
    text = (
        "features.2.conv.0.0:8>5+.1:5+features.2.conv.1.0:5>5+.1:5+"
        "features.2.conv.2:5>8"
    )
    slim = build(f"mobilenet_v2,width=0.25,slim={text}", 10, (3, 16, 16))
    depthwise = slim.get_submodule("features.2.conv.1.0")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.groups, depthwise.weight.shape) == (5, (5, 1, 3, 3))
    assert slim(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_the_field_comes_last_and_the_full_architecture_is_without_it():
    slim = Architecture.parse(f"resnet20,slim={BLOCK},width=1")
    assert str(slim) == f"resnet20,width=1,slim={BLOCK}"
    assert Architecture.parse(str(slim)) == slim
    assert str(slim.full) == "resnet20,width=1"
    assert slim.full.slimmed(BLOCK) == slim
    assert str(slim.slimmed("fc:60>10")) == "resnet20,width=1,slim=fc:60>10"


def test_weights_are_the_first_of_the_full_network():
    full = init_model("mlp,width=6", 3, (1, 2, 2), 1)
    slim = init_model("mlp,width=6,slim=hidden.2:6>4+fc:4>3", 3, (1, 2, 2), 1)
    weight = full.get_parameter("hidden.2.weight")
    assert torch.equal(slim.get_parameter("hidden.2.weight"), weight[:4])
    weight = full.get_parameter("fc.weight")
    assert torch.equal(slim.get_parameter("fc.weight"), weight[:, :4])


def test_a_member_of_foreign_code_needs_the_consent_for_the_code_only(
    tmp_path: Path, monkeypatch, digits
):
    (tmp_path / "slim_nets.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    return nn.Sequential(\n"
        "        nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, classes)\n"
        "    )\n"
    )
    monkeypatch.chdir(tmp_path)
    architecture = "slim_nets:net,slim=1:64>5+3:5>10"
    network = init_model(architecture, 10, (1, 8, 8), 0)
    info = MemberInfo(
        architecture=architecture,
        classes=digits.classes,
        input_shape=(1, 8, 8),
        normalization=digits.normalization,
    )
    path = tmp_path / "slim.safetensors"
    save_member(path, network.state_dict(), info)
    loaded = load_member(path, architecture="slim_nets:net").network()
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(images), network.eval()(images))
    with pytest.raises(InputError, match="code named by a file is not run"):
        load_member(path)
    with pytest.raises(InputError, match="code named by a file is not run"):
        load_member(path, architecture="slim_nets:other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1", "must be layers with their inputs and outputs.* 'conv1' is none"),
        ("conv1:3>x", "'conv1:3>x' is none; correct it"),
        ("conv1:3>7+", "'' is none"),
        ("7", "'7' is none"),
        ("conv1:3>7+conv1:3>6", "must name a layer once, but has 'conv1' twice"),
        ("conv9:3>7", "'conv9' is none of them; there are conv1, bn1, "),
        ("relu:3>7", "'relu' is none of them"),
        ("conv1:3>17", "conv1 has 3>16 and is to have 3>17"),
        ("conv1:3>0", "between 1 and all of its channels"),
        ("conv1:3>7", r"must give layers that fit .* \(.*\); correct slim=conv1:3>7"),
    ],
)
def test_nonsense_is_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        build(f"resnet20,slim={text}", 10, (3, 8, 8))


def test_groups_stay_whole():
    network = nn.Sequential(nn.Conv2d(8, 16, 1, groups=4))  # 2>4 per group
    with pytest.raises(InputError, match="must keep whole groups of 0, 2>4 each, but"):
        apply_slim(network, "0:4>12")
    apply_slim(network, {"0": (4, 8)})
    assert network(torch.randn(1, 4, 3, 3)).shape == (1, 8, 3, 3)
