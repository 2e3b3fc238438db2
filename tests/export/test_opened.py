"""ONNX files of anybody: read as data, or refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.data.normalization import Normalization
from metaensemble.export import ExportInfo, open_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def record(classes: tuple[str, ...], shape=(1, 8, 8)) -> ExportInfo:
    return ExportInfo(
        architecture="mlp,depth=0",
        classes=classes,
        input_shape=shape,
        normalization=Normalization(mean=(0.0,) * shape[0], std=(1.0,) * shape[0]),
        student_sha256="0",
        versions={},
    )


def linear(path: Path, weight: np.ndarray, metadata: str, **changes: object) -> Path:
    """Write softmax(pixels @ weight) by hand."""
    h, float_ = onnx.helper, onnx.TensorProto.FLOAT
    name = changes.get("input", "pixels")
    shape = ["batch", *changes.get("shape", (1, 8, 8))]  # pyright: ignore
    tensor = onnx.numpy_helper.from_array(weight.astype(np.float32), "weight")
    if changes.get("external"):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
    graph = h.make_graph(
        [
            h.make_node("Flatten", [name], ["flat"]),
            h.make_node("MatMul", ["flat", "weight"], ["logits"]),
            h.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "linear",
        [h.make_tensor_value_info(name, float_, shape)],
        [
            h.make_tensor_value_info(name, float_, ["batch", weight.shape[1]])
            for name in ("logits", "probabilities")
        ],
        [tensor],
    )
    opset = [h.make_opsetid("", 18)]
    model = h.make_model(graph, opset_imports=opset, ir_version=9)
    model.metadata_props.add(key="metaensemble", value=metadata)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 10))


def test_logits_are_those_of_the_graph(digits, weight, tmp_path):
    info = record(digits.classes)
    model = open_onnx(linear(tmp_path / "a.onnx", weight, info.model_dump_json()))
    assert model.info == info
    pixels = digits.test.batch(torch.arange(len(digits.test))).flatten(1) / 255
    wanted = pixels @ torch.from_numpy(weight).float()
    assert torch.allclose(model.logits(digits), wanted, atol=1e-4)


def test_classes_are_matched_by_name(digits, weight, tmp_path):
    own = record(digits.classes[::-1])
    turned = linear(tmp_path / "a.onnx", weight[:, ::-1], own.model_dump_json())
    plain = linear(
        tmp_path / "b.onnx", weight, record(digits.classes).model_dump_json()
    )
    one, two = (open_onnx(path).logits(digits) for path in (turned, plain))
    assert torch.allclose(one, two, atol=1e-4)


def test_images_are_resized(digits, tmp_path):
    info = record(digits.classes, (1, 4, 4)).model_dump_json()
    path = linear(tmp_path / "a.onnx", np.ones((16, 10)), info, shape=(1, 4, 4))
    logits = open_onnx(path).logits(digits)
    pixels = digits.test.batch(torch.arange(len(digits.test))).flatten(1) / 255
    assert torch.allclose(logits[:, 0], pixels.sum(1) / 4, rtol=0.1)


def test_other_channels_are_refused(digits, tmp_path):
    info = record(digits.classes, (3, 8, 8)).model_dump_json()
    path = linear(tmp_path / "a.onnx", np.ones((192, 10)), info, shape=(3, 8, 8))
    with pytest.raises(InputError, match=r"the channels, but .*a.onnx takes 3 and dig"):
        open_onnx(path).logits(digits)


def test_other_classes_are_refused(digits, tmp_path):
    info = record(("cat", "dog")).model_dump_json()
    path = linear(tmp_path / "a.onnx", np.ones((64, 2)), info)
    with pytest.raises(InputError, match=r"same classes, but .*a.onnx has 2"):
        open_onnx(path).logits(digits)


def test_a_record_that_does_not_fit_the_graph_is_refused(digits, tmp_path):
    info = record(digits.classes).model_dump_json()
    path = linear(tmp_path / "a.onnx", np.ones((64, 3)), info)
    with pytest.raises(InputError, match=r"its logits are \(897, 3\)"):
        open_onnx(path).logits(digits)


def test_images_that_do_not_fit_the_graph_are_refused(digits, tmp_path):
    info = record(digits.classes).model_dump_json()
    path = linear(tmp_path / "a.onnx", np.ones((16, 10)), info, shape=(1, 4, 4))
    with pytest.raises(InputError, match="must be an ONNX file that metaensemble"):
        open_onnx(path).logits(digits)


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"classes": 3}'])
def test_another_record_is_refused(weight, tmp_path, text):
    path = linear(tmp_path / "a.onnx", weight, text)
    with pytest.raises(InputError, match="its metadata 'metaensemble' are not a reco"):
        open_onnx(path)


def test_another_graph_is_refused(weight, tmp_path):
    path = linear(tmp_path / "a.onnx", weight, "{}", input="x")
    with pytest.raises(InputError, match=r"its inputs and outputs are \[\['x'\]"):
        open_onnx(path)


def test_weights_in_other_files_are_never_read(weight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(weight.astype(np.float32).tobytes())
    path = linear(tmp_path / "a.onnx", weight, "{}", external=True)
    with pytest.raises(InputError, match="its weights 'weight' lie in another file"):
        open_onnx(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x08\x0a" * 50])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match="must be an ONNX file that metaensemble expo"):
        open_onnx(tmp_path / "a.onnx")


def test_no_file_and_no_regular_file_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist; make one with: metaen"):
        open_onnx(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(InputError, match="an exported model must be a file"):
        open_onnx(tmp_path / "b.onnx")


def test_a_torch_program_is_refused_unread(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"whatever would execute")
    with pytest.raises(InputError, match=r"without executing code, but .* unpickles"):
        open_onnx(tmp_path / "a.pt2")
