"""A small valid file or folder for every reader, how it is read, and what is valid."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from packing import (
    Opened,
    gzipped,
    png_checked,
    safetensors_header,
    zipped_pickle,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from metaensemble.alignment import derive_permutations, save_spec, spec_for
from metaensemble.cli.parse import read_yaml
from metaensemble.core.seeds import generator, seeded
from metaensemble.core.states import LazyState, hash_state, load_state
from metaensemble.data import ImageData, Normalization, load_data
from metaensemble.data.split import Split
from metaensemble.engine.checkpoint import Progress, load_progress, save_progress
from metaensemble.models import init_model
from metaensemble.report import read_reports
from metaensemble.teachers import MemberInfo, load_member, save_member
from metaensemble.weightformer import (
    Predictor,
    PredictorInfo,
    WeightFormer,
    WeightFormerConfig,
    derive_token_spec,
    load_predictor,
    save_predictor,
)
from metaensemble.workflows.fuse import FuseConfig

SHAPE = (1, 8, 8)
NAME = "mlp,width=8"
CLASSES = ("ant", "bee", "cat")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sample:
    """One reader, as it is tried."""

    write: Callable[[Path, int], None]
    """Makes the files in a folder; other seeds, other contents of the same form."""
    read: Callable[[Path], object]
    """Reads them; raises AssertionError where what was read is not valid."""
    open: dict[str, Callable[[bytes], Opened]] = field(default_factory=dict)
    """By the end of a file's name, what lies under its checksums."""


def network(seed: int) -> nn.Module:
    return init_model(NAME, len(CLASSES), SHAPE, seed)


def normal(seed: int) -> Normalization:
    return Normalization(mean=(0.1 * seed,), std=(0.5,))


def check_state(state: dict[str, Tensor]) -> None:
    assert state
    for name, tensor in state.items():
        assert isinstance(name, str)
        assert tensor.device.type == "cpu"
        if tensor.is_floating_point():
            assert bool(torch.isfinite(tensor.double()).all())
    assert len(hash_state(state)) == 64


def write_member(folder: Path, seed: int) -> None:
    info = MemberInfo(
        architecture=NAME,
        classes=CLASSES,
        input_shape=SHAPE,
        normalization=normal(seed),
        training={"seed": seed, "command": "teach"},
        metrics={"validation": {"accuracy": 0.5}},
    )
    save_member(folder / "a.safetensors", network(seed).state_dict(), info)


def read_member(folder: Path) -> None:
    member = load_member(folder / "a.safetensors")
    assert len(set(member.tensors)) == len(member.tensors)
    images = torch.zeros(1, *member.info.input_shape, dtype=torch.uint8)
    logits = member.network()(member.prepare(images))
    assert logits.shape == (1, len(member.info.classes))


def bare(name: str, **options: bool) -> Sample:
    def write(folder: Path, seed: int) -> None:
        state = network(seed).state_dict()
        state |= {"count": torch.tensor(seed), "half": torch.ones(3).half()}
        if name.endswith(".safetensors"):
            save_file(state, folder / name, metadata={"format": "pt"})
        else:
            torch.save({"state_dict": state, "epoch": seed}, folder / name, **options)

    def read(folder: Path) -> None:
        state, metadata = load_state(folder / name)
        check_state(state)
        assert metadata is None or isinstance(metadata, dict)
        assert hash_state(LazyState(folder / name)) == hash_state(state)

    layers = {".safetensors": safetensors_header, "new.pt": zipped_pickle}
    return Sample(write, read, layers)


def write_predictor(folder: Path, seed: int) -> None:
    spec = derive_token_spec(network(seed), SHAPE)
    config = WeightFormerConfig(width=8, heads=2, depth=1, max_teachers=3)
    with seeded(seed, "generator"):
        former = WeightFormer(config, spec)
    info = PredictorInfo(
        config=former.config,
        spec=spec,
        architecture=NAME,
        classes=CLASSES,
        input_shape=SHAPE,
        normalization=normal(seed),
        trained_on=("0" * 64,),
        training={"seed": seed},
    )
    save_predictor(folder / "wf.safetensors", Predictor(former, info))


def read_predictor(folder: Path) -> None:
    predictor = load_predictor(folder / "wf.safetensors")
    spec = predictor.info.spec
    random = generator(0, "teachers")
    teacher = {n: torch.randn(s, generator=random) for n, s in spec.shapes.items()}
    teacher |= {alias: teacher[name] for alias, name in spec.ties.items()}
    if predictor.info.config.data_tokens == 0:
        predicted = predictor.predict([teacher], base=teacher)
        assert {n: tuple(t.shape) for n, t in predicted.items()} == {
            n: tuple(t.shape) for n, t in teacher.items()
        }


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"compress_level": 1} if kind == "PNG" else {}
    Image.fromarray(noise(seed, 9, 7, 3)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def images_of(kind: str, suffix: str) -> Sample:
    def write(folder: Path, seed: int) -> None:
        for number, split in enumerate(("train", "test")):
            for label, name in enumerate(CLASSES[:2]):
                (folder / "pictures" / split / name).mkdir(parents=True)
                for i in range(2 - number):
                    path = folder / "pictures" / split / name / f"{i}{suffix}"
                    path.write_bytes(image(8 * seed + 4 * number + 2 * label + i, kind))

    return Sample(write, lambda f: read_data(f / "pictures"), {".png": png_checked})


def read_data(path: Path) -> None:
    data: ImageData = load_data(path, validation_fraction=0.5)
    splits: list[Split] = [data.train, data.validation, data.test]
    for split in splits:
        batch = split.batch(torch.arange(len(split)))
        assert batch.dtype == torch.uint8
        assert batch.shape == (len(split), *data.input_shape)
        assert split.labels.dtype == torch.int64
        assert 0 <= int(split.labels.min()) <= int(split.labels.max())
        assert int(split.labels.max()) < len(data.classes)
    assert len(set(data.classes)) == len(data.classes) >= 2
    assert json.dumps(data.classes).isascii()
    "".join(data.classes).encode()


def write_parquet(folder: Path, seed: int) -> None:
    (folder / "table").mkdir()
    for number, split in enumerate(("train", "test")):
        pictures = [image(seed + number + i, "PNG") for i in range(4)]
        cells = [{"bytes": picture, "path": None} for picture in pictures]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table(
            {"img": pa.array(cells, kind), "label": pa.array([0, 1, 0, 1])}
        )
        features = {"label": {"names": list(CLASSES[:2]), "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
        way = ("none", "snappy", "zstd", "gzip")[seed % 4]
        pq.write_table(table, folder / "table" / f"{split}.parquet", compression=way)


def cifar_pickles(seed: int) -> dict[str, bytes]:
    def batch(number: int) -> bytes:
        data = noise(10 * seed + number, 2, 3072)
        return pickle.dumps({b"data": data, b"labels": [0, 1]}, protocol=2 + seed % 3)

    files = {f"data_batch_{k}": batch(k) for k in range(1, 6)}
    files["test_batch"] = batch(6)
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES[:2])})
    return files


def write_cifar(folder: Path, seed: int) -> None:
    (folder / "cifar").mkdir()
    for name, content in cifar_pickles(seed).items():
        (folder / "cifar" / name).write_bytes(content)


def tarball(seed: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in cifar_pickles(seed).items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def write_tarball(folder: Path, seed: int) -> None:
    (folder / "cifar.tar.gz").write_bytes(tarball(seed))


def idx(values: np.ndarray) -> bytes:
    magic = bytes((0, 0, 8, values.ndim))
    return magic + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def mnist(suffix: str) -> Sample:
    def write(folder: Path, seed: int) -> None:
        (folder / "mnist").mkdir()
        for number, half in enumerate(("train", "t10k")):
            contents = {
                f"{half}-images-idx3-ubyte": idx(noise(2 * seed + number, 6, 5, 4)),
                f"{half}-labels-idx1-ubyte": idx(np.array([0, 1, 2] * 2, np.uint8)),
            }
            for name, content in contents.items():
                if suffix:
                    content = gzip.compress(content, 1, mtime=0)
                (folder / "mnist" / f"{name}{suffix}").write_bytes(content)

    return Sample(write, lambda f: read_data(f / "mnist"), {".gz": gzipped})


def write_yaml(folder: Path, seed: int) -> None:
    text = f"""members: [a.safetensors, zoo/b.safetensors]
data: digits
out: run
seed: {seed}
limit_train: {100 + seed}
augment: crop_flip
quiet: true
method:
  name: kd
  temperature: 4.0
"""
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def read_config(folder: Path) -> None:
    values = read_yaml(folder / "config.yaml", FuseConfig)
    assert set(values) <= set(FuseConfig.model_fields)


def write_spec(folder: Path, seed: int) -> None:
    save_spec(folder / "spec.json", derive_permutations(network(seed), SHAPE))


def read_spec(folder: Path) -> None:
    spec = spec_for(network(0), SHAPE, folder / "spec.json")
    assert all(group.size >= 2 for group in spec.groups)


def write_report_file(folder: Path, seed: int) -> None:
    studies = (ROOT / "benchmarks" / name for name in ("digits", "soups"))
    study = [json.loads((s / "report.json").read_text("utf-8")) for s in studies]
    row = study[seed % 2]["rows"][0]
    (folder / "report.json").write_text(json.dumps(row, indent=1), encoding="utf-8")


def read_report_file(folder: Path) -> None:
    for report in read_reports(folder):
        assert np.isfinite(report.student.test.accuracy)


def write_checkpoint(folder: Path, seed: int) -> None:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, *SHAPE)).sum().backward()
    optimizer.step()
    progress = Progress(seed, model.state_dict(), optimizer.state_dict())
    progress.history = [{"step": seed, "loss": 0.5}]
    save_progress(folder / "a.ckpt", progress)


def read_checkpoint(folder: Path) -> None:
    progress = load_progress(folder / "a.ckpt")
    assert isinstance(progress, Progress)


SAMPLES = {
    "member": Sample(write_member, read_member, {"": safetensors_header}),
    "bare safetensors": bare("a.safetensors"),
    "pickled state dict": bare("new.pt"),
    "legacy state dict": bare("old.pth", _use_new_zipfile_serialization=False),
    "predictor": Sample(write_predictor, read_predictor, {"": safetensors_header}),
    "png folder": images_of("PNG", ".png"),
    "jpeg folder": images_of("JPEG", ".jpg"),
    "webp folder": images_of("WEBP", ".webp"),
    "tiff folder": images_of("TIFF", ".tif"),
    "parquet": Sample(write_parquet, lambda f: read_data(f / "table")),
    "cifar folder": Sample(write_cifar, lambda f: read_data(f / "cifar")),
    "cifar tarball": Sample(
        write_tarball,
        lambda f: read_data(f / "cifar.tar.gz"),
        {".gz": gzipped},
    ),
    "idx": mnist(""),
    "idx, gzipped": mnist(".gz"),
    "yaml": Sample(write_yaml, read_config),
    "permutation spec": Sample(write_spec, read_spec),
    "report": Sample(write_report_file, read_report_file),
    "checkpoint": Sample(write_checkpoint, read_checkpoint, {"": zipped_pickle}),
}
"""Reader to sample."""
