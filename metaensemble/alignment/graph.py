"""The graph of a network: by torch.fx, or else by torch.export."""

import io
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from logging import Logger, getLogger
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from metaensemble.core.errors import InputError


@dataclass(frozen=True)
class Graph:
    """What a network computes, operation by operation."""

    module: fx.GraphModule
    sources: dict[str, str | None]
    """Placeholder -> the tensor of the network that it stands for, None for a constant.
    A placeholder that is missing here takes the images."""
    exported: bool
    """Whether the operations are those of ATen, with their results known, and the
    layers dissolved into them."""


def graph_of(network: nn.Module, images: Tensor) -> Graph:
    """Return the network's graph in eval mode; the network stays as it is.

    torch.fx comes first, for it keeps the layers whole. It cannot follow Python code
    that looks at shapes; torch.export can, for images of the one size.

    Raises:
        InputError: both fail, because the control flow depends on the data.
    """
    try:
        return Graph(_symbolic(network), {}, exported=False)
    except Exception as error:  # a proxy in a condition raises all sorts of things
        first = error
    try:
        return _exported(network, images)
    except Exception as error:  # and so does a fake tensor
        at = _where(error) or _where(first) or "in the network's forward"
        raise InputError(
            "a network's permutations can be derived only if torch.fx or torch.export "
            f"can trace it, but tracing failed {at} ({_one_line(error)}); take what "
            "depends on the data out of the control flow, or give a PermutationSpec "
            "by hand, a JSON file as docs/alignment.md describes it"
        ) from error


def _symbolic(network: nn.Module) -> fx.GraphModule:
    before = set(vars(network))
    try:
        return fx.symbolic_trace(network)
    finally:
        for constant in set(vars(network)) - before:  # left behind by torch.fx
            delattr(network, constant)


def _exported(network: nn.Module, images: Tensor) -> Graph:
    with _plainly(), torch.no_grad():
        program = torch.export.export(network, (images,), strict=False)
    tensors = (InputKind.PARAMETER, InputKind.BUFFER)
    sources = {
        spec.arg.name: spec.target if spec.kind in tensors else None
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
    return Graph(program.graph_module, sources, exported=True)


@contextmanager
def _plainly() -> Iterator[None]:
    """Keep attention in plain operations, and failures to the exception."""
    fast = torch.backends.mha.get_fastpath_enabled()
    loggers = [
        logger
        for name, logger in getLogger().manager.loggerDict.items()
        if name.partition(".")[0] == "torch" and isinstance(logger, Logger)
    ]
    silent = [logger.disabled for logger in loggers]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for logger in loggers:
            logger.disabled = True
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, was in zip(loggers, silent, strict=True):
            logger.disabled = was


def _where(error: BaseException) -> str:
    """Return the innermost line of the user's code that an error went through."""
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if not f.filename.startswith(ours) and "<" not in f.filename
    ]
    return f"at {own[-1].filename}:{own[-1].lineno}, `{own[-1].line}`" if own else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
