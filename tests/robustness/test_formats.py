"""Properties of the formats, over values that hypothesis thinks of."""

import json
import math
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.core.guards import parse_json, parse_yaml
from metaensemble.core.states import hash_state, load_state, save_state
from metaensemble.data import Normalization, load_data
from metaensemble.data.pickled import read_pickle
from metaensemble.models import Architecture
from metaensemble.teachers import MemberInfo

few = settings(derandomize=True, deadline=None, max_examples=25, database=None)

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(unicode, inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(shape, generator=random, dtype=torch.float64) * 50
    return values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype)


states = st.dictionaries(
    unicode.filter(lambda name: name != "__metadata__"),
    tensors(),
    min_size=1,
    max_size=4,
)


@few
@given(state=states, metadata=st.dictionaries(unicode, plain, max_size=3))
def test_a_state_is_read_as_it_was_written(state, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_state(path, state, metadata)
        loaded, found = load_state(path)
    assert hash_state(loaded) == hash_state(state)
    assert found == metadata


@few
@given(state=states)
def test_a_pickled_state_is_read_as_it_was_written(state):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        torch.save(state, path)
        loaded, _ = load_state(path)
    assert hash_state(loaded) == hash_state(
        {  # a prefix that all names have is taken off
            name.removeprefix("module.")
            if all(n.startswith("module.") for n in state)
            else name: tensor
            for name, tensor in state.items()
        }
    )


finite = st.floats(-1e6, 1e6)


@few
@given(
    classes=st.lists(unicode, min_size=2, max_size=4).map(tuple),
    shape=st.tuples(*[st.integers(1, 2**40)] * 3),
    channels=st.lists(st.tuples(finite, st.floats(1e-6, 1e6)), min_size=1, max_size=3),
    training=st.dictionaries(unicode, plain, max_size=3),
)
def test_a_members_record_survives_json(classes, shape, channels, training):
    mean, std = (tuple(values) for values in zip(*channels, strict=True))
    info = MemberInfo(
        architecture="mlp",
        classes=classes,
        input_shape=shape,
        normalization=Normalization(mean=mean, std=std),
        training=training,
    )
    assert MemberInfo.model_validate(info.model_dump(mode="json")) == info
    assert MemberInfo.model_validate(parse_json(info.model_dump_json())) == info


word = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
field_values = st.one_of(
    st.integers(-(10**6), 10**6),
    st.booleans(),
    finite,
    word.filter(lambda w: w not in ("true", "false", "nan", "inf", "infinity")),
)


@few
@given(name=word, fields=st.dictionaries(word, field_values, max_size=4))
def test_an_architecture_is_parsed_as_it_is_spelled(name, fields):
    architecture = Architecture(name=name, fields=fields)
    again = Architecture.parse(str(architecture))
    assert again == architecture
    assert list(map(type, again.fields.values())) == list(
        map(type, architecture.fields.values())
    )
    assert str(again) == str(architecture)


@settings(few, max_examples=100)
@given(text=st.text(max_size=40) | st.from_regex(r"[a-z]+(,[a-z]+=[^,]*){1,3}"))
def test_a_text_is_an_architecture_or_refused(text):
    try:
        architecture = Architecture.parse(text)
    except InputError:
        return
    assert Architecture.parse(str(architecture)) == architecture


def idx(values: np.ndarray) -> bytes:
    magic = bytes((0, 0, 8, values.ndim))
    return magic + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@few
@given(
    count=st.integers(2, 9),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_idx_files_are_read_as_they_were_written(count, size, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(2 * count, dtype=np.uint8) % 2
    images = random.integers(0, 256, (2 * count, *size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for half in ("train", "t10k"):
            (folder / f"{half}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / f"{half}-labels-idx1-ubyte").write_bytes(idx(labels))
        test = load_data(folder, validation_fraction=0.5).test
    assert np.array_equal(test.batch(torch.arange(2 * count))[:, 0].numpy(), images)
    assert test.labels.tolist() == labels.tolist()


@few
@given(value=plain)
def test_plain_values_survive_json_and_yaml(value):
    assert parse_json(json.dumps(value)) == value
    text = yaml.safe_dump(value, allow_unicode=True)
    if "&id" not in text:
        assert parse_yaml(text) == value


@few
@given(
    value=st.dictionaries(
        unicode | st.binary(max_size=9),
        st.recursive(
            st.integers() | st.floats(allow_nan=False) | unicode | st.binary(),
            lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
            max_leaves=5,
        ),
        max_size=3,
    ),
    protocol=st.integers(1, 4),
    shape=st.lists(st.integers(0, 3), max_size=3),
    kind=st.sampled_from(["u1", "<i8", ">i2", "f4"]),
)
def test_plain_pickles_are_read_as_python_reads_them(value, protocol, shape, kind):
    array = np.arange(math.prod(shape)).reshape(shape).astype(kind)
    found = read_pickle(pickle.dumps({**value, "own": array}, protocol), "x")
    assert np.array_equal(found.pop("own"), array)
    assert found == {k: v for k, v in value.items() if k != "own"}


@settings(few, max_examples=100)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_plain_pickle_or_refused(content):
    try:
        value = read_pickle(content, "x")
    except Exception as error:
        if isinstance(error, MemoryError | RecursionError):
            raise
    else:
        kinds = (dict, list, tuple, bytes, str, int, float, type(None))
        assert isinstance(value, kinds) or "pickled" in type(value).__module__


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_that_are_refused(form):
    parse = {"json": parse_json, "yaml": parse_yaml}[form]
    with pytest.raises(ValueError, match="has the key 'a' twice"):
        parse('{"a": 1, "b": {"a": 1}, "a": 2}')
    with pytest.raises(ValueError, match="nested too deeply"):
        parse("[" * 70 + "]" * 70)
    assert parse("[" * 64 + "]" * 64) is not None
