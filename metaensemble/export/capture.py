"""A network as a graph of operators for any number of images, by torch.export."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line
from metaensemble.export.deployed import INPUT, Deployed, ExportInfo

RECORD = "metaensemble.json"
"""The extra file of a program that holds its `ExportInfo`."""
BATCH = "batch"
"""Name of the first axis, whose size is free."""


def example(input_shape: tuple[int, int, int]) -> Tensor:
    """Return pixels to trace with; two images, for one would be taken as a constant."""
    return torch.full((2, *input_shape), 0.5)


def capture(network: Deployed, input_shape: tuple[int, int, int]) -> ExportedProgram:
    """Return the graph of a network for batches of any size.

    Raises:
        InputError: its forward is no fixed graph, such as one that decides by values;
            the module is named.
    """
    free = {INPUT: {0: Dim(BATCH)}}
    try:
        with silent(), plain_attention():
            pixels = example(input_shape)
            return torch.export.export(network, (pixels,), dynamic_shapes=free)
    except Exception as error:  # torch raises a dozen types
        name = where(_running(error, network))
        raise InputError(
            f"a network must be one fixed graph of operators for any number of images "
            f"to be exported, but {name} is not ({one_line(error)}); "
            "take such decisions out of its forward, or choose --format safetensors"
        ) from error


def write_program(path: Path, program: ExportedProgram, info: ExportInfo) -> None:
    """Write a program with its record."""
    buffer = io.BytesIO()
    with silent():
        record = {RECORD: info.model_dump_json()}
        torch.export.save(program, buffer, extra_files=record)
    path.write_bytes(buffer.getvalue())


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what runs a program that this process wrote: pixels to logits.

    Never for a stranger's file: torch.export.load unpickles, which executes code.
    """
    with silent():
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(pixels)[0]

    return run


def where(module: tuple[str, str] | None) -> str:
    """Return the name and class of a module of the network, for messages."""
    if module is None:
        return "this one"
    name, kind = module
    return f"{name!r} ({kind})" if name else kind


def module_of(node: Node) -> tuple[str, str] | None:
    """Return name and class of the module that a node of a graph comes from."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    name, kind = list(stack.values())[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return _within(name), kind.rpartition(".")[2]


def _running(error: BaseException, network: nn.Module) -> tuple[str, str] | None:
    """Return the module whose forward an error came out of: the innermost one."""
    names = {id(module): name for name, module in network.named_modules()}
    found = None
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            found = _within(names[id(module)]), type(module).__name__
        trace = trace.tb_next
    return found


def _within(name: str) -> str:
    """Return a module's name within the user's network."""
    return name.removeprefix("network").removeprefix(".")


@contextmanager
def silent() -> Iterator[None]:
    """Keep the exporters' warnings, none of which a user can act on, to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have attention run operator by operator: the fused one is torch's own."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
