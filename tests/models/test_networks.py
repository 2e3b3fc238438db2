"""Names, shapes and counts of the built-in networks.

``golden_names.json`` was derived without this package: from torchvision's naming and
the tables of the papers. Its order is that of the state dict.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models import build, init_model
from metaensemble.models.architecture import BUILTINS

GOLDEN = json.loads((Path(__file__).parent / "golden_names.json").read_text())

COUNTS = {  # torchvision's documentation at 1000 classes; the papers at CIFAR-10
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "wrn28_10": 36_479_194,
    "convnet": 131_754,
    "mobilenet_v2": 3_504_872,
}

LIGHT = (
    "mlp",
    "mlp,batchnorm=true",
    "mlp,depth=0",
    "convnet,width=4",
    "resnet20",
    "resnet20,shortcut=B,width=0.5",
    "resnet18",
    "resnet50",
    "vgg11",
    "vgg11_bn",
    "wrn16_1",
    "wrn16_2,dropout=0.3",
    "mobilenet_v2,width=0.25",
    "patchnet",
)
VIT = "vit_small_32x32,dim=12,depth=2,mlp_dim=8"


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_golden(name: str):
    golden = GOLDEN[name]
    with torch.device("meta"):
        model = build(name, golden["classes"], tuple(golden["input_shape"]))
    found = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert found == list(golden["tensors"].items())
    if name in COUNTS:
        assert count(model) == COUNTS[name]


def test_every_count_is_checked():
    assert GOLDEN.keys() >= COUNTS.keys()


@pytest.mark.parametrize("name", BUILTINS)
def test_every_network_gives_logits(name: str):
    with torch.device("meta"):
        model = build(name, 7, (3, 64, 64))
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 13)])
@pytest.mark.parametrize("name", LIGHT)
def test_small_images(name: str, shape: tuple[int, int, int]):
    with torch.device("meta"):
        model = build(name, 5, shape)
        assert model(torch.zeros(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "wrn16_1", VIT])
def test_forward_and_backward_reach_every_parameter(name: str):
    model = init_model(name, 3, (1, 8, 8), seed=0)
    for head in model.modules():
        if isinstance(head, nn.Linear):  # a ViT's starts at zero and hides the rest
            nn.init.normal_(head.weight)
    logits = model(torch.randn(4, 1, 8, 8))
    assert logits.shape == (4, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", [*LIGHT, VIT])
def test_fx_traces(name: str):
    model = init_model(name, 4, (3, 16, 16), seed=1).eval()
    images = torch.randn(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images), model(images))


def test_vit_takes_images_that_are_not_square():
    model = build(VIT, 4, (3, 8, 16))
    assert model(torch.zeros(2, 3, 8, 16)).shape == (2, 4)


@pytest.mark.parametrize("name", LIGHT)
def test_no_relu_works_in_place(name: str):
    with torch.device("meta"):
        modules = list(build(name, 4, (3, 32, 32)).modules())
    assert not any(module.inplace for module in modules if isinstance(module, nn.ReLU))


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = init_model("convnet", 10, (1, 8, 8), seed=3)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)  # the global generator is untouched
    second = init_model("convnet", 10, (1, 8, 8), seed=3)
    other = init_model("convnet", 10, (1, 8, 8), seed=4)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(
        first.get_parameter("fc.weight"), other.get_parameter("fc.weight")
    )


def test_initial_variance_is_that_of_he():
    weight = init_model("resnet18", 10, (3, 32, 32), seed=0).get_parameter(
        "layer4.1.conv2.weight"
    )
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_width_scales_the_channels():
    with torch.device("meta"):
        double = build("resnet20,width=2", 10, (3, 32, 32))
        half = build("resnet20,width=0.5", 10, (3, 32, 32))
        convnet = build("convnet,width=64", 10, (3, 32, 32))
    assert double.get_parameter("layer3.2.conv2.weight").shape == (128, 128, 3, 3)
    assert half.get_parameter("layer3.2.conv2.weight").shape == (32, 32, 3, 3)
    assert convnet.get_parameter("conv4.weight").shape == (256, 128, 3, 3)
    assert count(double) == pytest.approx(4 * 269_722, rel=0.01)


def test_shortcut_a_subsamples_and_appends_zero_channels():
    model = build("resnet20,width=0.0625", 2, (1, 4, 4))  # 1, 2 and 4 channels
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = model.get_submodule("layer2.0.downsample")(images)
    assert out.tolist() == [[[[0.0, 2.0], [8.0, 10.0]], [[0.0, 0.0], [0.0, 0.0]]]]


def test_stem_and_head_follow_the_size():
    with torch.device("meta"):
        for size, kernel in ((63, 3), (64, 7)):
            resnet = build("resnet18", 10, (3, size, size))
            assert resnet.get_parameter("conv1.weight").shape[-1] == kernel
        forced = build("resnet18,stem=imagenet", 10, (3, 32, 32))
        assert forced.get_parameter("conv1.weight").shape[-1] == 7
        full = build("vgg11,head=imagenet", 10, (3, 32, 32))
        assert full.get_parameter("classifier.0.weight").shape == (4096, 25088)


def test_vit_loads_the_names_of_old_torchvision_files():
    model, other = (init_model(VIT, 4, (3, 8, 8), seed) for seed in (0, 1))
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in model.state_dict().items()
    }
    other.load_state_dict(old)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet20", 3, "resnet20 needs images of at least 4x4 pixels, but .* 3x3"),
        ("wrn16_1", 2, "wrn16_1 needs images of at least 4x4 .* choose mlp"),
        ("convnet", 3, "convnet needs images of at least 4x4 pixels"),
        ("resnet18", 7, "resnet18 needs images of at least 8x8 pixels, but .* 7x7"),
        ("mobilenet_v2", 7, "mobilenet_v2 needs images of at least 8x8 pixels"),
        ("mobilenet_v2,stem=imagenet", 31, "at least 32x32 .* set stem=small"),
        ("resnet18,stem=imagenet", 31, "at least 32x32 .* set stem=small"),
        ("vgg11,head=imagenet", 31, "at least 32x32 .* set head=small"),
        ("vit_small_32x32", 30, "patch=4 does not divide 30x30 pixels; set patch"),
        ("vit_b_32", 16, "patch=32 does not divide 16x16 pixels"),
        ("vit_small_32x32,heads=5", 32, "heads=5 does not divide dim=192"),
    ],
)
def test_unsuitable_inputs_are_refused(name: str, size: int, message: str):
    with pytest.raises(InputError, match=message):
        build(name, 10, (3, size, size))
