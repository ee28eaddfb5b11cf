"""Read pickles of weights without running any code in them.

Nothing that a pickle names is called. The parts of weights - arrays, tensors, plain containers - are built
here from checked values; anything else is refused. In particular, no state from a pickle reaches numpy's or
torch's own ``__setstate__`` and ``set_``, which trust what they are told about memory. An argparse.Namespace,
which training scripts save beside the weights, becomes a dict.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections import Counter, OrderedDict
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

#: More steps than any weight file has. Without a limit, a byte of a pickle could cost 200 of memory.
_MAX_STEPS = 2_000_000
_MAX_DIMENSIONS = 32

_NUMPY_TYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
#: Types of torch's storage classes; an untyped storage is read with the type of the tensor that uses it.
_STORAGES: Dict[str, Optional[torch.dtype]] = {
    "UntypedStorage": None,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_UNTYPED = "an untyped storage"
#: Supported tensor types, by torch's names.
TORCH_TYPES = {
    name: getattr(torch, name)
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    )
    if hasattr(torch, name)
}


class RefusedError(pickle.UnpicklingError):
    """The pickle names something that would have to be executed."""


class Storage:
    """Memory that tensors are views of.

    Args:
        dtype: type of its elements; None if the tensors define it.
        buffer: its bytes, which may be filled later.
    """

    def __init__(self, dtype: Optional[torch.dtype], buffer: bytearray) -> None:
        self.dtype, self.buffer = dtype, buffer

    def view(self, offset: int, size: Tuple, stride: Tuple, dtype: Optional[torch.dtype]) -> Tensor:
        """Make a tensor on this memory.

        Args:
            offset: position of its first element, in elements.
            size, stride: as in torch, in elements.

        Raises:
            ValueError: the tensor would reach beyond the memory, or have more elements than it.
        """
        dtype = self.dtype or dtype
        numbers = (offset, *size, *stride)
        if not isinstance(dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor without a type, or of a size that is no number")
        if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions and {len(stride)} strides")
        there = len(self.buffer) // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        if last >= there or math.prod(size) > there:
            expanded = ", as expand() makes it: save its clone()" if 0 in stride else ""
            raise ValueError(f"a tensor of {math.prod(size)} elements on a storage of {there}{expanded}")
        return torch.as_strided(torch.frombuffer(self.buffer, dtype=dtype), size, stride, offset)


class _Type:
    """Placeholder for numpy's dtype until its state arrives, which has the byte order."""

    def __init__(self, name: object, *rest: object) -> None:
        name = name.lstrip("<>|=") if isinstance(name, str) else name
        if name not in _NUMPY_TYPES:
            raise ValueError(f"an array of numpy's type {str(name)[:20]}, which weights are not")
        self.value = np.dtype(name)

    def build(self, state: Any) -> None:
        _version, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(x is not None for x in rest[:3]):
            raise ValueError("an array of a structured type, which weights are not")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Placeholder for an array until its content arrives; ``places`` are its positions in the memo."""

    def __init__(self) -> None:
        self.places: List[int] = []


class _Namespace(dict):
    """Stands for an argparse.Namespace, which training scripts save beside the weights."""

    def __init__(self) -> None:
        super().__init__()  # with no items, whose keys would have to be checked


class _Memo(dict):
    def __setitem__(self, place: int, value: Any) -> None:
        if isinstance(value, _Array):
            value.places.append(place)
        super().__setitem__(place, value)


class _Steps(dict):
    """Dispatch table of a pickle's steps by code, which counts them."""

    left = _MAX_STEPS

    def __getitem__(self, code: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            raise ValueError("more steps than a file of weights has")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable:
        raise ValueError(f"byte {code:#04x} is no step of a pickle")


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    """Make an array in this machine's byte order, with its own memory."""
    if isinstance(data, str):  # how Python 2 wrote bytes
        data = data.encode("latin1")
    if not isinstance(dtype, _Type) or not isinstance(data, (bytes, bytearray)):
        raise ValueError("an array without a type or content")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array whose shape is no tuple of numbers")
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"an array of {len(data)} bytes whose shape or type needs another number")
    array = np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(dtype.value.newbyteorder("="))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str = "C", axes: Any = None) -> np.ndarray:
    array = _array(data, dtype, shape, order)
    return array if axes is None else array.transpose(tuple(axes))


def _scalar(dtype: Any, data: Any) -> np.generic:
    return _array(data, dtype, ())[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _bytes(cls: type) -> Callable:
    def make(content: Any = b"", encoding: str = "latin1") -> Any:
        if isinstance(content, str):
            content = _encode(content, encoding)
        if not isinstance(content, (bytes, bytearray, list)):  # a number would be a length
            raise ValueError("bytes of no content")
        return cls(content)

    return make


def _set(cls: type) -> Callable:
    return lambda items=(): cls(map(_key, items))


def _ordered(items: Any = ()) -> OrderedDict:
    return OrderedDict((_key(key), value) for key, value in items)


def _counter(counts: Dict = {}) -> Counter:  # noqa: B006
    if not isinstance(counts, dict):
        raise ValueError("counts of nothing")
    return Counter(counts)


def _key(value: Any) -> Any:
    """Return a value that may be a key: hashing deeply nested tuples would crash the process."""
    parts = value if type(value) is tuple else (value,)
    if not all(x is None or isinstance(x, (str, bytes, int, float, np.generic)) for x in parts):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return storage.view(offset, tuple(size), tuple(stride), None)


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return storage.view(offset, tuple(size), tuple(stride), dtype)


def _parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _subclass(rebuild: Any, cls: Any, arguments: Any, *state: Any) -> Tensor:
    """Make a tensor without its attributes."""
    if rebuild not in (_tensor, _tensor_of_type, _parameter):
        raise ValueError("a tensor of a class that is not known")
    return rebuild(*arguments)


def _size(items: Any = ()) -> torch.Size:
    return torch.Size(int(n) for n in items)


#: Replacements for everything that a pickle may name.
_STAND_INS: Dict[Tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *rest: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("argparse", "Namespace"): _Namespace,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "Counter"): _counter,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes(bytes),
    ("builtins", "bytearray"): _bytes(bytearray),
    ("builtins", "set"): _set(set),
    ("builtins", "frozenset"): _set(frozenset),
    ("builtins", "complex"): lambda real=0.0, imag=0.0: complex(float(real), float(imag)),
    ("torch", "Size"): _size,
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    **{("torch", name): dtype for name, dtype in TORCH_TYPES.items()},
    **{
        (module, name): dtype or _UNTYPED
        for module in ("torch", "torch.storage", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
}


class Unpickler(pickle._Unpickler):
    """Reads one pickle. Malformed ones raise any Exception.

    Based on the Python implementation, since the memo of the one in C is a list as long as its largest index.

    Args:
        file: in memory, since a file on disk would allocate the length that a pickle claims for a string.
        storage: makes a tensor's storage from its type, key and number of elements; None if a pickle must not
            have any.

    Raises:
        RefusedError: the pickle names something other than arrays, tensors and plain containers.
    """

    def __init__(
        self,
        file: BinaryIO,
        storage: Optional[Callable[[Optional[torch.dtype], str, int], Storage]] = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.memo, self.dispatch, self._storage = _Memo(), _Steps(self.steps), storage

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise RefusedError(f"{module}.{name}"[:100]) from None

    def persistent_load(self, pid: Any) -> Storage:
        if self._storage is None or type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise RefusedError("an object outside of the pickle")
        _, kind, key, _, length, *view = pid
        typed = isinstance(kind, torch.dtype)
        if not (typed or kind == _UNTYPED) or type(length) is not int or length < 0:
            raise ValueError("a storage without a type or a length")
        if any(x is not None for x in view):
            raise ValueError("a view of a storage, as torch wrote them before version 0.4")
        return self._storage(kind if typed else None, str(key)[:100], length)

    def _call(self) -> None:
        arguments = self.stack.pop()
        if not callable(self.stack[-1]):
            raise ValueError("a call of what cannot be called")
        self.stack[-1] = self.stack[-1](*arguments)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Type):
            target.build(state)
        elif isinstance(target, _Array):
            shape, dtype, columns_first, data = state[-4:]
            self.stack[-1] = _array(data, dtype, shape, "F" if columns_first else "C")
            for place in target.places:
                self.memo[place] = self.stack[-1]
        elif isinstance(target, OrderedDict):
            _set_versions(target, state)
        elif isinstance(target, _Namespace) and isinstance(state, dict):
            target.update(state)
        else:
            raise RefusedError(f"state of a {type(target).__name__}")

    def _new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if cls is not _Namespace or arguments:
            self._refuse()
        self.append(_Namespace())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: List) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError(f"items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(_pairs(items))

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append(_pairs(items))

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _append_all(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: List) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"an element of a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _add_all(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError(f"an element of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_key, items))

    def _freeze(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(_key, items)))

    def _bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(length, 1 << 62))))

    def _refuse(self) -> None:
        raise RefusedError("an object of a class")

    steps = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _call,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _new_object,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _append_all,
        pickle.ADDITEMS[0]: _add_all,
        pickle.FROZENSET[0]: _freeze,
        pickle.BYTEARRAY8[0]: _bytearray,
        **dict.fromkeys(
            map(
                ord,
                (
                    pickle.INST,
                    pickle.OBJ,
                    pickle.NEWOBJ_EX,
                    pickle.EXT1,
                    pickle.EXT2,
                    pickle.EXT4,
                    pickle.NEXT_BUFFER,
                    pickle.READONLY_BUFFER,
                ),
            ),
            _refuse,
        ),
    }


def _pairs(items: List) -> Dict:
    return {_key(items[i]): items[i + 1] for i in range(0, len(items), 2)}


def _set_versions(state: OrderedDict, attributes: Any) -> None:
    """Keep only the module versions from a state_dict's metadata."""
    versions = attributes.get("_metadata") if isinstance(attributes, dict) else None
    if isinstance(versions, dict):
        state._metadata = OrderedDict(
            (name, {"version": entry["version"]})
            for name, entry in versions.items()
            if isinstance(name, str) and isinstance(entry, dict) and type(entry.get("version")) is int
        )


def loads(content: bytes) -> Any:
    """Read a pickle without tensors. Raises as :class:`Unpickler` does."""
    return Unpickler(io.BytesIO(content)).load()
