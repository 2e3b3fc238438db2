"""ONNX files: every family, any batch, the same bytes, named failures.

torch's exporter takes seconds per network, so that all but one of these are slow.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.data.normalization import Normalization
from metaensemble.export import (
    FORMATS,
    Deployed,
    Format,
    info_of,
    latencies,
    verify,
    write_export,
)
from metaensemble.export import onnx as exporter
from metaensemble.export.formats import open_written, runtime_version
from metaensemble.export.verify import random_images
from metaensemble.models import init_model
from metaensemble.teachers import Member, MemberInfo, save_member

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FAMILIES = {
    "convnet,width=8": (3, 8, 8),
    "convnet,width=8,slim=conv4:16>9+bn4:9+fc:9>5": (3, 8, 8),
    "resnet20,width=0.5": (3, 8, 8),
    "resnet20,width=0.5,branches=2": (3, 8, 8),
    "resnet18": (3, 32, 32),
    "vgg11_bn": (1, 8, 8),
    "wrn16_1": (3, 8, 8),
    "vit_small_32x32,depth=1,dim=24,mlp_dim=16": (3, 8, 8),
    "mobilenet_v2": (3, 8, 8),
    "patchnet": (1, 8, 8),
}


def saved(path: Path, network: nn.Module, architecture: str, shape) -> Member:
    info = MemberInfo(
        architecture=architecture,
        classes=("a", "b", "c", "d", "é"),
        input_shape=shape,
        normalization=Normalization(mean=(0.4,) * shape[0], std=(0.3,) * shape[0]),
    )
    return save_member(path, network.state_dict(), info)


def made(folder: Path, architecture: str, shape=(3, 8, 8), seed: int = 0) -> Member:
    """A member with weights large enough for its classes to differ."""
    network = init_model(architecture, 5, shape, seed)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=random)
        elif name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 2, generator=random)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3, generator=random)
    return saved(folder / f"{seed}.safetensors", network, architecture, shape)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    def lacking(name: str):
        raise ImportError(name)

    monkeypatch.setattr(exporter.importlib, "import_module", lacking)
    with pytest.raises(InputError, match=r"needs the package onnx, .*ensemble\[onnx\]"):
        exporter.wanted("onnx", "onnxscript")


def test_weights_beyond_what_the_format_holds_are_refused(
    make_member, digits, monkeypatch, tmp_path
):
    info = info_of(make_member(tmp_path / "a.safetensors", 0))
    network = Deployed(nn.Linear(64, 10), digits.normalization)
    monkeypatch.setattr(exporter, "LARGEST", 100)
    with pytest.raises(InputError, match="at most 100 bytes, but these take 2,608"):
        exporter.write_onnx(tmp_path / "a.onnx", network, info)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_gives_the_same_logits(tmp_path, architecture):
    shape = FAMILIES[architecture]
    member = made(tmp_path, architecture, shape)
    formats: list[Format] = ["onnx", "torch_export"]
    for format in formats:
        path = tmp_path / f"a{FORMATS[format].suffix}"
        write_export(format, path, member)
        seen = verify(
            member, open_written(format, path, architecture), random_images(shape)
        )
        assert seen.images == 256
        assert seen.unequal_decisions == 0
    logits = member.network()(member.prepare(random_images(shape).batch(_first(100))))
    assert logits.std(0).min() > 1e-3  # a network that tells images apart


def _first(count: int) -> Tensor:
    return torch.arange(count)


@pytest.mark.slow
def test_a_file_says_what_it_is_and_nothing_of_its_making(tmp_path):
    member = made(tmp_path, "convnet,width=8")
    one, two = tmp_path / "1.onnx", tmp_path / "2.onnx"
    for path in (one, two):
        write_export("onnx", path, member)
    assert one.read_bytes() == two.read_bytes()
    assert b".py" not in one.read_bytes()  # of stack traces
    model = onnx.load(one)
    onnx.checker.check_model(model, full_check=True)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c", "d", "é"]
    record = info_of(member).model_dump(mode="json")
    assert json.loads(metadata["metaensemble"]) == record
    (pixels,), outputs = model.graph.input, model.graph.output
    dims = [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, dims) == ("pixels", ["batch", 3, 8, 8])
    assert [value.name for value in outputs] == ["logits", "probabilities"]
    assert {
        tuple(d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim)
        for o in outputs
    } == {("batch", 5)}
    session = exporter.session_of(one.read_bytes())
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits, shares = session.run(None, {"pixels": images.numpy()})
    softmax = torch.from_numpy(logits).softmax(-1)
    assert torch.allclose(torch.from_numpy(shares), softmax, atol=1e-6)
    assert runtime_version("onnx").startswith("ONNX Runtime 1.")


class Bessel(nn.Module):
    """An operator that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the Bessel function of x."""
        return torch.special.bessel_j1(x)


class Clamp(nn.Module):
    """An operator that the newer exporter stumbles over."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x in [0, 1]."""
        return x.clamp(0, 1.0)


def network_with(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 10), layer))


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named_with_its_module(
    make_member, digits, tmp_path
):
    info = info_of(make_member(tmp_path / "a.safetensors", 0))
    network = Deployed(network_with(Bessel()), digits.normalization)
    message = r"^every operator .* but \S*bessel_j1 in '1.1' \(Bessel\) is not; replace"
    with pytest.raises(InputError, match=message):
        exporter.write_onnx(tmp_path / "a.onnx", network, info)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_what_the_newer_exporter_cannot_the_older_may(make_member, digits, tmp_path):
    info = info_of(make_member(tmp_path / "a.safetensors", 0))
    network = Deployed(network_with(Clamp()), digits.normalization)
    path = tmp_path / "a.onnx"
    exporter.write_onnx(path, network, info)
    run = exporter.runner_of(exporter.session_of(path.read_bytes()))
    for count in (1, 2, 7):
        images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.allclose(run(images), network(images)[0], atol=1e-6)
    assert b".py" not in path.read_bytes()


@pytest.mark.slow
def test_a_student_is_n_times_as_fast_as_its_ensemble_in_onnx_runtime(tmp_path):
    members = [made(tmp_path, "convnet,width=16", seed=seed) for seed in range(5)]
    path = tmp_path / "a.onnx"
    write_export("onnx", path, members[0])
    found = latencies(members[0], members[1:], "onnx", path)
    for runtime in ("torch", "onnx"):
        assert found[runtime]["ratio"] <= 1.5 / 4, found  # the aim is 1.1 / 4
