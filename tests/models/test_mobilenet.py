import pytest
import torch
from torch import nn

from metaensemble.metrics import macs
from metaensemble.models import build, init_model
from metaensemble.models.mobilenet import InvertedResidual, _divisible


def test_it_costs_what_the_paper_says():
    with torch.device("meta"):
        model = build("mobilenet_v2", 1000, (3, 224, 224))
    assert macs(model, (3, 224, 224)) == pytest.approx(300e6, rel=0.01)  # table 4
    assert model.get_parameter("features.18.0.weight").shape == (1280, 320, 1, 1)


def test_widths_are_multiples_of_8_and_no_tenth_too_small():
    # 24 * 0.75 = 18 -> 16 would lose more than a tenth
    assert [_divisible(n) for n in (1, 4, 11, 12, 18, 24, 112)] == [
        *(8, 8, 16, 16, 24, 24, 112)
    ]
    narrow = build("mobilenet_v2,width=0.25", 10, (3, 32, 32))
    assert narrow.get_parameter("features.0.0.weight").shape[0] == 8
    assert narrow.get_parameter("classifier.1.weight").shape == (10, 1280)
    wide = build("mobilenet_v2,width=1.5", 10, (3, 32, 32))
    assert wide.get_parameter("classifier.1.weight").shape == (10, 1920)


def test_small_images_keep_the_size_at_the_stem_and_in_the_second_stage():
    sizes = {}
    for name, shape in (("small", (3, 32, 32)), ("imagenet", (3, 64, 64))):
        model = build("mobilenet_v2,width=0.25", 10, shape)
        features = model.get_submodule("features")
        assert isinstance(features, nn.Sequential)
        x = torch.zeros(1, *shape)
        sizes[name] = []
        for layer in features.eval():
            x = layer(x)
            sizes[name].append(x.shape[2])
    assert sizes["small"] == [32] * 4 + [16] * 3 + [8] * 7 + [4] * 5
    assert sizes["imagenet"] == [*[32] * 2, *[16] * 2, *[8] * 3, *[4] * 7, *[2] * 5]
    # a tiny image, too
    tiny = build("mobilenet_v2,width=0.25", 10, (1, 8, 8)).eval()
    assert tiny(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_input_is_added_where_the_shape_stays():
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, 1, 6).eval()
    for parameter in block.conv[2].parameters():  # the projection gives nothing
        nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert not InvertedResidual(4, 6, 1, 6).residual
    assert not InvertedResidual(4, 4, 2, 6).residual


def test_convolutions_filter_channels_apart():
    model = init_model("mobilenet_v2,width=0.25", 5, (3, 16, 16), 0)
    depthwise = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    assert len(depthwise) == 17
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
