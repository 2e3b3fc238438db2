"""State dicts: reading strangers' safely, writing ours atomically, comparing, hashing.

A state dict maps tensor names to tensors. Nothing is ever unpickled beyond
``torch.load(weights_only=True)``.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.files import atomic_path
from metaensemble.core.guards import one_line, parse_json, refuse_irregular

State = dict[str, Tensor]

METADATA_KEY = "metaensemble"
"""The safetensors header key under which our JSON metadata lies."""
NESTS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts keep the state dict in a checkpoint."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and `torch.compile` put before every name."""


def save_state(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all.

    Tensors that share memory are written apart; each is made contiguous on the CPU.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    # One key only: safetensors writes several in an order that changes from run to run.
    header = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_state(path: Path) -> tuple[State, dict[str, Any] | None]:
    """Return the tensors of a checkpoint and its metaensemble metadata, if it has any.

    Args:
        path: a ``.safetensors`` file, or a file of ``torch.save`` that holds a state
            dict, alone or under one of the keys `NESTS`. `WRAPPERS` before all names
            are taken off.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is not a readable checkpoint, would take more memory than
            its own size, or a tensor is not finite.
    """
    if not path.exists():
        raise MissingFileError(
            f"a member must be a checkpoint file, but {path} does not exist; "
            "make members with: metaensemble teach --out ZOO"
        )
    refuse_irregular(path, "a checkpoint")
    if path.suffix == ".safetensors":
        state, metadata = _load_safetensors(path)
    else:
        state, metadata = _load_pickled(path), None
    if not state:
        raise InputError(f"a checkpoint must hold tensors, but {path} holds none")
    refuse_not_finite(state, str(path))
    return state, metadata


LET_GO = 2**22
"""Bytes read from a safetensors file after which it is opened anew: it is mapped, and
pages that were read count as memory as long as it is open."""


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are read from the file when they are asked for.

    So that many networks can be merged in the memory of one tensor each. The file must
    have been accepted by `load_state`, and must not change meanwhile. Pickled files are
    mapped into memory.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open a file whose names, `prefix` apart, are those of the state."""
        self.path = path
        self.prefix = prefix
        self._safe: Any = None
        self._read = 0
        self._mapped: State = {}
        if path.suffix == ".safetensors":
            self._open()
            names = self._safe.keys()
        else:
            self._mapped = _load_pickled(path, mapped=True)
            names = self._mapped
        self._names = dict.fromkeys(name.removeprefix(prefix) for name in names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._safe is None:
            return self._mapped[self.prefix + name]
        tensor = self._safe.get_tensor(self.prefix + name)
        self._read += tensor.nbytes
        if self._read > LET_GO:
            self._open()
        return tensor

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of all tensors, none of which is read."""
        if self._safe is None:
            return {name: tensor.shape for name, tensor in self.items()}
        slices = {name: self._safe.get_slice(self.prefix + name) for name in self}
        return {name: torch.Size(one.get_shape()) for name, one in slices.items()}

    def _open(self) -> None:
        self._safe = safe_open(self.path, framework="pt").__enter__()
        self._read = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _load_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get(METADATA_KEY)
            state = {name: handle.get_tensor(name) for name in handle.keys()}
        metadata = None if text is None else parse_json(text)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} must be a whole safetensors file, but reading it failed "
            f"({one_line(error)}); copy or make it again"
        ) from error
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(
            f"the {METADATA_KEY!r} metadata of {path} must be a JSON object, "
            f"but is a {type(metadata).__name__}"
        )
    return state, metadata


def _load_pickled(path: Path, *, mapped: bool = False) -> State:
    try:
        zipped = refuse_packed(path)
        mmap = mapped and zipped  # older formats cannot be mapped
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises half a dozen types for broken files
        raise InputError(
            f"{path} must be a state dict that loads without executing code "
            f"(torch.load with weights_only=True), but {_why_not(error)}; where you "
            "trained it, save it again with torch.save(model.state_dict(), path)"
        ) from error
    kind = type(value).__name__
    pairs = _pairs(value)
    for key in NESTS:
        if isinstance(pairs.get(key), dict):
            kind, pairs = type(pairs[key]).__name__, _pairs(pairs[key])
    state = {k: v.detach() for k, v in pairs.items() if isinstance(v, Tensor)}
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and name in state for name in pairs
    ):
        raise InputError(
            f"{path} must hold a state dict (names to tensors), but holds a "
            f"{kind} of other things; save model.state_dict()"
        )
    _refuse_unreal(state, path)
    return _unwrapped(state)


def _why_not(error: Exception) -> str:
    """Return why a pickle did not load; of foreign objects, which it holds."""
    found = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
    if found is None:
        return f"loading failed ({one_line(error)})"
    return f"it holds objects of {found[1]}, not only tensors"


def _unwrapped(state: State) -> State:
    """Return a state dict without what wrappers put before every name."""
    for prefix in WRAPPERS * 2:  # in either order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): t for name, t in state.items()}
    return state


def refuse_packed(path: Path) -> bool:
    """Tell whether `path` is a zip file, which must not unfold: torch compresses none.

    Raises:
        ValueError: a few of its bytes stand for many.
    """
    with path.open("rb") as handle:
        if handle.read(4) != b"PK\3\4":  # torch's own criterion
            return False
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        # Of a comment another reader might think that it is the table of contents.
        if unpacked > path.stat().st_size or archive.comment:
            raise ValueError(f"it is a zip file that unfolds to {unpacked} bytes")
    return True


def _pairs(value: object) -> dict[Any, Any]:
    """Return a dict's items, whatever attributes a pickle gave an `OrderedDict`."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _refuse_unreal(state: State, path: Path) -> None:
    """Raise `InputError` for a tensor without values of its own in the file.

    Such as one on no device, or one number that a stride of 0 spreads over a terabyte.
    """
    size = path.stat().st_size
    for name, tensor in state.items():
        dense = tensor.layout is torch.strided and not tensor.is_nested
        real = dense and tensor.device.type == "cpu" and not tensor.is_quantized
        if not real or tensor.numel() * tensor.element_size() > size:
            raise InputError(
                f"tensors must be dense and lie in their file, but {name!r} of {path} "
                f"({tensor.dtype}, shape {tuple(tensor.shape)}) does not; "
                "save plain, contiguous tensors"
            )


def refuse_not_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise `InputError` if a floating tensor holds NaN or an infinity."""
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.element_size() == 1:  # torch knows no isfinite for all of these
            tensor = _widened(name, tensor, source)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"weights must be finite, but {source} has NaN or infinity in "
                f"{name!r}; leave this member out or train it again"
            )


def refuse_different(states: Mapping[str, Mapping[str, Tensor]], why: str) -> None:
    """Raise `InputError` unless all states have equal names and shapes.

    Args:
        states: source (shown in the message) to state dict; the first is the yardstick.
        why: the clause that opens the message, such as "teachers must share one
            architecture".
    """
    sources = ((source, _shapes(state)) for source, state in states.items())
    first_source, first = next(sources)
    for source, shapes in sources:
        missing = [name for name in first if name not in shapes]
        extra = [name for name in shapes if name not in first]
        odd = [n for n in first if n in shapes and first[n] != shapes[n]]
        if missing:
            what = f"lacks {missing[0]!r}{_and_more(missing)} of {first_source}"
        elif extra:
            what = f"has {extra[0]!r}{_and_more(extra)} beyond those of {first_source}"
        elif odd:
            got, want = tuple(shapes[odd[0]]), tuple(first[odd[0]])
            what = f"has {odd[0]!r} of shape {got} where {first_source} has {want}"
        else:
            continue
        raise InputError(
            f"{why}, but {source} {what}; "
            "choose --method kd for teachers of different architectures"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    if isinstance(state, LazyState):
        return state.shapes()
    return {name: tensor.shape for name, tensor in state.items()}


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _widened(name: str, tensor: Tensor, source: str) -> Tensor:
    try:
        return tensor.float()
    except RuntimeError as error:  # four bits
        raise InputError(
            f"weights must be of a type that can be computed with, but {source} has "
            f"{tensor.dtype} in {name!r}; save them as float32"
        ) from error


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
