"""Interop room: every name that a checkpoint may ask for, in one literal table, and what a call of it makes.

What PyTorch writes: torch/_utils.py (`_rebuild_*`), torch/_tensor.py (`__reduce_ex__`), torch/storage.py (the classes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from npdwconv.errors import CheckpointError
from npdwconv.interop._tensors import ITEMSIZES, Tensor, tensor

SCALARS = (type(None), bool, int, float, complex, str, bytes)
KEY_PARTS = 64


@dataclass(frozen=True, slots=True)
class Global:
    """A name that can be called, and what the call makes."""

    name: str
    make: Callable[..., object]


@dataclass(frozen=True, slots=True)
class StorageType:
    """A storage class of PyTorch: the dtype of its elements."""

    dtype: str


def key(value: Any) -> Any:
    """``value`` if it may be a key or a member of a set: a scalar, or a flat tuple of them."""
    # Flat and short: hashing a deeply nested tuple overflows the C stack.
    parts = value if type(value) is tuple else (value,)
    if len(parts) > KEY_PARTS or not all(type(part) in SCALARS for part in parts):
        raise CheckpointError(f"the pickle uses a {type(value).__name__} as a key; keys are scalars or flat tuples")
    return value


def _items(values: object) -> Iterable[Any]:
    if isinstance(values, (list, tuple)):
        return values
    raise TypeError("a list or tuple is needed")


def _mapping(pairs: object = ()) -> dict[Any, Any]:
    if type(pairs) is dict:
        return dict(pairs)
    return {key(name): value for name, value in _items(pairs)}


def _set(values: object) -> set[Any]:
    return {key(value) for value in _items(values)}


def _frozenset(values: object) -> frozenset[Any]:
    return frozenset(_set(values))


def _bytes(value: object = b"", encoding: object = "latin1") -> bytes:
    if type(value) is str and encoding in ("latin1", "latin-1"):
        return value.encode("latin-1")
    if type(value) is bytes:
        return value
    raise TypeError("bytes, or a string and latin1, are needed")


def _bytearray(*args: object) -> bytearray:
    return bytearray(_bytes(*args))


def _complex(real: object, imag: object) -> complex:
    if type(real) is float and type(imag) is float:
        return complex(real, imag)
    raise TypeError("two floats are needed")


def _size(values: object) -> tuple[Any, ...]:
    return tuple(_items(values))


def _device(kind: object, number: object = None) -> str:
    if type(kind) is not str or type(number) not in (int, type(None)):
        raise TypeError("a string and an index are needed")
    return kind if number is None else f"{kind}:{number}"


def _tensor_v2(window: object, offset: object, shape: object, stride: object, *rest: object) -> Tensor:
    _grad, _hooks, metadata = rest if len(rest) == 3 else (*rest, None)
    return _checked(window, offset, shape, stride, None, metadata)


def _tensor_v3(window: object, offset: object, shape: object, stride: object, *rest: object) -> Tensor:
    _grad, _hooks, dtype, metadata = rest if len(rest) == 4 else (*rest, None)
    if type(dtype) is not str:
        raise TypeError("a dtype is needed")
    return _checked(window, offset, shape, stride, dtype.removeprefix("torch."), metadata)


def _checked(*fields: object) -> Tensor:
    *view, metadata = fields
    if metadata:
        raise CheckpointError(
            "a tensor is saved as the conjugate or negative of its storage; "
            "save it after resolve_conj() and resolve_neg()"
        )
    return tensor(*view)


def _parameter(data: object, _grad: object, _hooks: object, _state: object = None) -> Tensor:
    if isinstance(data, Tensor):
        return data
    raise TypeError("a tensor is needed")


def _typed_tensor(rebuild: object, kind: object, args: object, _state: object) -> object:
    """A tensor or parameter with Python attributes; these are dropped."""
    if not isinstance(rebuild, Global) or rebuild.make not in (_tensor_v2, _tensor_v3, _parameter):
        raise TypeError("a function that rebuilds a tensor is needed")
    if not isinstance(kind, Global) or kind.make is not _class_only:
        raise TypeError("torch.Tensor or torch.nn.Parameter is needed")
    return rebuild.make(*_items(args))


def _class_only(*_args: object) -> object:
    raise TypeError("the class is only accepted as a name")


CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    # Protocol 2 writes the names of Python 2, and bytes as text.
    "__builtin__.set": _set,
    "__builtin__.frozenset": _frozenset,
    "__builtin__.bytes": _bytes,
    "__builtin__.bytearray": _bytearray,
    "__builtin__.complex": _complex,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.Tensor": _class_only,
    "torch.nn.parameter.Parameter": _class_only,
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
}

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

# A dtype that stands by itself in a checkpoint is read as its name.
GLOBALS: dict[str, Global | StorageType | str] = {
    **{name: Global(name, make) for name, make in CALLS.items()},
    **{f"{home}.{name}": StorageType(dtype) for home in ("torch", "torch.cuda") for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType("uint8"),
    **{f"torch.{name}": f"torch.{name}" for name in ITEMSIZES},
}
