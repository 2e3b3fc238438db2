"""A network as one ONNX file, and such files run in ONNX Runtime."""

import importlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line
from metaensemble.core.states import METADATA_KEY
from metaensemble.export.capture import (
    BATCH,
    capture,
    example,
    module_of,
    plain_attention,
    silent,
    where,
)
from metaensemble.export.deployed import INPUT, OUTPUTS, Deployed, ExportInfo

CLASSES_KEY = "classes"
"""Metadata key of the class names, a JSON list, for those who want nothing else."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold, its format's limit."""
_FAILED = re.compile(r"%(\w+) :.*?target=(?:torch\.ops\.)?([\w.]+)\]")


def write_onnx(path: Path, network: Deployed, info: ExportInfo) -> None:
    """Write a network as ONNX: weights inside, the batch free, its record as metadata.

    The same network gives the same bytes; nothing of the exporting machine, such as
    paths in stack traces, is kept.

    Raises:
        InputError: an operator cannot be expressed (it and its module are named), the
            network is no fixed graph or too large, or a package is not installed.
    """
    wanted("onnx", "onnxscript")
    tensors = [*network.parameters(), *network.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > LARGEST:
        raise InputError(
            f"the weights of one ONNX file must take at most {LARGEST:,} bytes, but "
            f"these take {size:,}; choose --format safetensors or torch_export"
        )
    program = capture(network, info.input_shape)
    try:
        model = _translated(program)
    except Exception as error:  # the exporter raises half a dozen types
        model = _traced(network, info.input_shape)
        if model is None:
            raise _inexpressible(error, program) from error
    for part in _parts(model):
        del part.metadata_props[:]
        part.doc_string = ""
    for key, value in (
        (METADATA_KEY, info.model_dump_json()),
        (CLASSES_KEY, json.dumps(info.classes, ensure_ascii=False)),
    ):
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString(deterministic=True))


def refuse_other_files(content: bytes) -> None:
    """Refuse an ONNX file whose weights lie in others, which the runtime would read.

    Raises:
        ValueError: they do.
        google.protobuf.message.DecodeError: it is no ONNX file.
    """
    for part in _parts(wanted("onnx").load_from_string(content)):
        if getattr(part, "data_location", 0) or len(getattr(part, "external_data", ())):
            raise ValueError(f"its weights {part.name!r} lie in another file")


def session_of(content: bytes) -> Any:
    """Return ONNX Runtime's session of a file's bytes, on as many threads as torch.

    On the CPU. A stranger's file must have passed `refuse_other_files`.
    """
    runtime = wanted("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # refusals come as exceptions
    return runtime.InferenceSession(content, options, ["CPUExecutionProvider"])


def runner_of(session: Any) -> Callable[[Tensor], Tensor]:
    """Return what runs a session: pixels to logits."""

    def run(pixels: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUTS[0]], {INPUT: pixels.numpy()})
        return torch.from_numpy(logits)

    return run


def wanted(*packages: str) -> Any:
    """Import packages of the extra ``onnx`` and return the first.

    Raises:
        InputError: one is not installed.
    """
    found = []
    for package in packages:
        try:
            with silent():
                found.append(importlib.import_module(package))
        except ImportError as error:
            raise InputError(
                f"ONNX needs the package {package}, which is not installed; "
                "run: pip install 'metaensemble[onnx]'"
            ) from error
    return found[0]


def _translated(program: ExportedProgram) -> Any:
    with silent(), plain_attention():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: BATCH}},
            verbose=False,
        )
    assert translated is not None
    return translated.model_proto


def _traced(network: Deployed, input_shape: tuple[int, int, int]) -> Any | None:
    """Return what the older exporter makes of a network, None where it fails, too.

    It knows some operators that the newer one stumbles over, such as a clamp between
    numbers of two types. It follows one image's path through the program, which is
    sound here: the network is known to be one fixed graph.
    """
    buffer = io.BytesIO()
    try:
        with silent(), plain_attention():
            torch.onnx.export(
                network,
                (example(input_shape),),
                buffer,  # pyright: ignore  (its annotation forgets files)
                dynamo=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: BATCH} for name in (INPUT, *OUTPUTS)},
            )
    except Exception:  # whatever it is, the newer exporter's reason is told
        return None
    return wanted("onnx").load_from_string(buffer.getvalue())


def _inexpressible(error: BaseException, program: ExportedProgram) -> InputError:
    """Return the error that names the operator that failed, and its module."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    found = next((m for text in chain[::-1] if (m := _FAILED.search(text))), None)
    if found is None:
        return InputError(
            f"every operator must be one that ONNX can express, but this network's "
            f"translation failed ({one_line(chain[-1])}); "
            "choose --format torch_export or safetensors"
        )
    operator = found[2].removesuffix(".default")
    short = operator.split(".")[1] if "." in operator else operator
    named = (n for n in program.graph.nodes if short in str(n.target).split("."))
    alike = (n for n in program.graph.nodes if short in str(n.target))
    node = next((n for nodes in (named, alike) for n in nodes), None)
    name = where(None if node is None else module_of(node))
    return InputError(
        f"every operator must be one that ONNX can express, but {operator} in {name} "
        "is not; replace it, or choose --format torch_export or safetensors"
    )


def _parts(model: Any) -> Iterator[Any]:
    """Yield a model and all of it that may carry notes of its making, or weights."""
    yield model
    for function in model.functions:
        yield function
        yield from _node_parts(function.node)
    yield from _graph_parts(model.graph)


def _graph_parts(graph: Any) -> Iterator[Any]:
    yield graph
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_parts(graph.node)


def _node_parts(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
                yield attribute.sparse_tensor.indices
            for graph in attribute.graphs:
                yield from _graph_parts(graph)
            if attribute.HasField("g"):
                yield from _graph_parts(attribute.g)
