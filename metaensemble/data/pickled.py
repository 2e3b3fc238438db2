"""The part of the pickle format that plain containers and numpy arrays need.

Python's own unpickler calls what a file names, and numpy's arrays and types, restored
from a hostile file, can point anywhere in memory. So the opcodes are read here, onto
stand-ins: nothing outside of this file is ever called.
"""

import io
import pickletools
from typing import Any

import numpy as np

from metaensemble.core.errors import InputError
from metaensemble.core.guards import one_line

KINDS = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
"""Types that the numbers of an array may have."""
KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",  # how Python 3 writes bytes in old protocols
    ("__builtin__", "bytes"): "no bytes",  # and how none
}
"""Everything that a pickle may name."""
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE")
STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # Python 2's, which are bytes
BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")


class _Name(str):
    """A value of `KNOWN`."""


class _Type:
    """A numpy type; its byte order comes with its state."""

    def __init__(self, kind: object) -> None:
        text = kind.decode() if isinstance(kind, bytes) else kind
        if text not in KINDS:
            raise ValueError(f"no array type {text!r} is known")
        self.kind, self.order = text, "|"

    def restore(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"no byte order {order!r} is known")
        self.order = order


class _Array:
    """A numpy array; its content comes with its state."""

    value: np.ndarray | None = None

    def restore(self, state: Any) -> None:
        _, shape, kind, column_first, content = state
        if not (isinstance(kind, _Type) and isinstance(content, bytes)):
            raise ValueError("an array has no bytes of a known type")
        flat = np.frombuffer(content, np.dtype(kind.order + kind.kind))
        self.value = flat.reshape(shape, order="F" if column_first else "C")


def read_pickle(content: bytes, where: str) -> Any:
    """Return what is in a pickle; the arrays of a dict are numpy's.

    Args:
        content: a whole pickle of protocol 0 to 4.
        where: what it is, for messages.

    Raises:
        InputError: it names anything but a numpy array.
        ValueError: it is damaged, or holds anything else that is not known.
    """
    machine = _Machine(len(content), where)
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        machine.take(opcode.name, argument)
    value = machine.stack.pop()
    if not isinstance(value, dict):
        return value
    return {k: v.value if isinstance(v, _Array) else v for k, v in value.items()}


class _Machine:
    """The stack and the memory of an unpickler."""

    def __init__(self, size: int, where: str) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[int, Any] = {}
        self.encodable = size  # bytes to make of text, lest one text becomes many
        self.where = where

    def take(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        stack = self.stack
        if name in NUMBERS or name in TEXTS or name in BYTES:
            stack.append(argument)
        elif name in STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            stack.append(_paired({}, items) if name == "DICT" else items)
            if name == "TUPLE":
                stack[-1] = tuple(items)
        elif name in TUPLES:
            stack.append(tuple(self.last(TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self.last(1) if name == "APPEND" else self.since_mark()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.last(2) if name == "SETITEM" else self.since_mark()
            _paired(self.top(dict), items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self.memory) if name == "MEMOIZE" else argument
            self.memory[place] = self.top(object)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            pair = argument.split(" ", 1) if name == "GLOBAL" else self.last(2)
            stack.append(self.named(*pair))
        elif name == "REDUCE":
            stack.append(self.made(*self.last(2)))
        elif name == "BUILD":
            (state,) = self.last(1)
            top = stack[-1]
            if not isinstance(top, _Type | _Array):
                raise ValueError("only arrays and their types have a state")
            top.restore(state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the opcode {name} is not known")

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        """Take the uppermost values off the stack."""
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def top(self, kind: type) -> Any:
        """Return the uppermost value, which must be of a kind."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {kind.__name__} is missing")
        return self.stack[-1]

    def named(self, module: Any, name: Any) -> _Name:
        """Return the stand-in of a name."""
        if (module, name) not in KNOWN:
            raise InputError(
                f"a CIFAR pickle must hold only numpy arrays, but {self.where} names "
                f"'{one_line(f'{module}.{name}')}', which could execute code; do not "
                "use this file, download the data from its source"
            )
        return _Name(KNOWN[module, name])

    def made(self, name: Any, arguments: Any) -> Any:
        """Return what a stand-in makes of its arguments."""
        if not isinstance(name, _Name):
            raise ValueError("what is called has no name")
        if name == "array":
            return _Array()
        if name == "dtype":
            return _Type(arguments[0])
        if name == "no bytes" and arguments == ():
            return b""
        if name == "bytes" and isinstance(arguments[0], str):
            self.encodable -= len(arguments[0])
            if self.encodable >= 0:
                return arguments[0].encode("latin-1")
        raise ValueError(f"{name} is called with other arguments than numpy's")


def _paired(into: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Enter keys and values in turn; keys must be plain."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise ValueError(f"a key is a {type(key).__name__}")
        into[key] = value
    return into
