"""Reads pickles without unpickling: a machine that builds plain data and descriptions of tensors, and nothing else.

A pickle is a program for a stack machine, and Python's own machine lets it import and call anything. This one knows
the instructions that `torch.save` writes and a list of names; to call a name makes a `StoredTensor` or plain data. Any
other name or instruction is an error, so no pickle can run code. Each instruction takes time and memory in proportion
to its own length or to what it takes from the stack, so a pickle costs no more than its size.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from mergecore.checkpoint.dtypes import Dtype


class Name(NamedTuple):
    """What a pickle imports: only its name."""

    text: str
    """`torch._utils._rebuild_tensor_v2`"""


class Storage(NamedTuple):
    """A block of elements that tensors lie in."""

    kind: str
    """`torch.HalfStorage`: gives the type of the elements."""
    key: str
    n: int
    """Elements; bytes of an untyped storage."""


class StoredTensor(NamedTuple):
    """A part of a storage, as the pickle says: nothing is checked yet."""

    storage: Any
    offset: Any
    """In elements of the storage."""
    shape: Any
    strides: Any
    """In elements."""
    kind: str
    """What gives the type of the elements: the storage's kind, or `torch.uint16`."""


STORAGES = {
    "torch.DoubleStorage": Dtype.F64,
    "torch.FloatStorage": Dtype.F32,
    "torch.HalfStorage": Dtype.F16,
    "torch.BFloat16Storage": Dtype.BF16,
    "torch.LongStorage": Dtype.I64,
    "torch.IntStorage": Dtype.I32,
    "torch.ShortStorage": Dtype.I16,
    "torch.CharStorage": Dtype.I8,
    "torch.ByteStorage": Dtype.U8,
    "torch.BoolStorage": Dtype.BOOL,
}
UNTYPED_STORAGES = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
DTYPES = {
    "torch.uint16": Dtype.U16,
    "torch.uint32": Dtype.U32,
    "torch.uint64": Dtype.U64,
    "torch.float8_e4m3fn": Dtype.F8_E4M3,
    "torch.float8_e5m2": Dtype.F8_E5M2,
}
"""Types that have no storage class of their own: their tensors lie in untyped storages."""

_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
"""What numpy's numbers are made with, such as a loss that training code saved. Nothing is made of them here."""
_NAMES = {
    *_SCALARS, *STORAGES, *UNTYPED_STORAGES, *DTYPES, "collections.OrderedDict", "torch.Size", "torch.device",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch.ComplexFloatStorage", "torch.ComplexDoubleStorage",
    "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16", "torch.int64", "torch.int32", "torch.int16",
    "torch.int8", "torch.uint8", "torch.bool",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "SHORT_BINSTRING", "BINSTRING",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class RefusedError(ValueError):
    """The pickle asks for what is not allowed. The text completes `the file ...`."""


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The object of the next pickle in `file`, and all storages it names, by key. `file` should lie in memory.

    The object is made of dicts, lists, tuples, numbers, text and tensors. Raises RefusedError for what is not allowed,
    and ValueError, TypeError or LookupError for what is no pickle.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    """The stacks under each mark."""
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else _number(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_number(argument)])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                _list(stack[-1]).extend(items)
            else:
                _set_items(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "SETITEM":
            items, stack[-2:] = stack[-2:], []
            _set_items(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_allowed(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_allowed(f"{_text(stack[-2])}.{_text(stack[-1])}")]
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            storages[storage.key] = storage
            stack.append(storage)
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()  # attributes, such as a state dict's version numbers: nothing that says where tensors lie
        elif name == "STOP":
            return stack.pop(), storages
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"holds the pickle instruction {name}, which no file of weights needs")
    raise ValueError("no end")


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:  # and never str(value): tuples that hold one another twice would take for ever
        raise TypeError("not a text")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError("not a list")
    return value


def _set_items(target: Any, items: Sequence[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise TypeError("not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int)):  # to hash nested tuples can take for ever
            raise RefusedError(f"holds a dictionary with a key that is neither text nor a number: {type(key).__name__}")
        target[key] = value


def _allowed(name: str) -> Name:
    if name not in _NAMES:
        raise RefusedError(f"asks for `{ascii(name)[1:-1]:.80}`, which is not allowed in a file of weights")
    return Name(name)


def _storage(identity: Any) -> Storage:
    """From what `torch.save` writes for a storage: ("storage", class, key, device, elements, ...)."""
    tag, kind, key, _, n = identity[:5]
    if type(identity) is not tuple or tag != "storage" or type(kind) is not Name:
        raise TypeError("not a storage")
    if any(view is not None for view in identity[5:]):
        raise RefusedError("holds views of storages in the way of torch before 0.4")
    return Storage(kind.text, _text(key), _number(n))


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not Name or type(arguments) is not tuple:
        raise TypeError("not a call")
    match function.text, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (Storage() as storage, *place):
            offset, shape, strides = place[:3]
            return StoredTensor(storage, offset, shape, strides, storage.kind)
        case "torch._utils._rebuild_tensor_v3", (Storage() as storage, offset, shape, strides, _, _, Name(kind), *_):
            return StoredTensor(storage, offset, shape, strides, kind)
        case "torch._utils._rebuild_parameter" | "torch.Size" | "torch.device", (value, *_):
            return value
    if function.text in _SCALARS:
        return arguments
    raise RefusedError(f"calls `{function.text}` in a way that no file of weights needs")
