"""Interop room: tensors of a weights file, strided windows on storages of raw bytes. Knows no file format."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.errors import CheckpointError, DTypeError

# Bytes an element, by PyTorch's names, which are NumPy's and ml_dtypes' too.
ITEMSIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex128": 16,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
TARGETS = ("float16", "bfloat16", "float32", "float64")
INDEX_LIMIT = 2**63
MAX_RANK = 64  # of NumPy 2


class Storage:
    """Raw bytes and the dtype they were saved under; each typed form is made once, so that tensors share it."""

    __slots__ = ("_typed", "byteorder", "dtype", "raw")

    def __init__(self, dtype: str, raw: npt.NDArray[np.uint8], byteorder: str = "little") -> None:
        self.dtype, self.raw, self.byteorder = dtype, raw, byteorder
        self._typed: dict[str, npt.NDArray[Any]] = {}

    def typed(self, dtype: str, target: np.dtype[Any] | None) -> npt.NDArray[Any]:
        """The bytes as a 1-D array of ``dtype``, converted to ``target`` if that is given and ``dtype`` is a float."""
        if dtype not in self._typed:
            whole = self.raw[: self.raw.size - self.raw.size % ITEMSIZES[dtype]]
            self._typed[dtype] = _convert(_native(whole, dtype, self.byteorder), dtype, target)
        return self._typed[dtype]


@dataclass(frozen=True, slots=True)
class Window:
    """``numel`` elements of a storage from ``start``; only the legacy format has any but the whole."""

    storage: Storage
    start: int
    numel: int

    def typed(self, dtype: str, target: np.dtype[Any] | None) -> npt.NDArray[Any]:
        """This part of the storage's typed form."""
        saved, size = ITEMSIZES[self.storage.dtype], ITEMSIZES[dtype]
        start, rest = divmod(self.start * saved, size)
        if rest:
            raise CheckpointError(f"a view of a storage starts at byte {self.start * saved}, inside a {dtype}")
        return self.storage.typed(dtype, target)[start : start + self.numel * saved // size]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view, offset and strides in elements, of values that may not have been read yet."""

    window: Window
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, target: np.dtype[Any] | None) -> npt.NDArray[Any]:
        """The view itself, on the memory of its storage."""
        flat = self.window.typed(self.dtype, target)
        try:
            return np.empty(self.shape, flat.dtype) if 0 in self.shape else self._view(flat)
        except (OverflowError, ValueError) as err:
            raise CheckpointError(f"{self}: {err}") from err

    def _view(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # In Python's integers: NumPy's own check of strides against a buffer can wrap around.
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if last >= flat.size:
            raise CheckpointError(f"{self} reaches element {last} of a storage of {flat.size}")
        steps = [step * flat.itemsize for step in self.stride]
        view: npt.NDArray[Any] = np.ndarray(
            self.shape, flat.dtype, flat.view(np.uint8), self.offset * flat.itemsize, steps
        )
        return view

    def __str__(self) -> str:
        return f"a {self.dtype} tensor of shape {self.shape}, stride {self.stride} and offset {self.offset}"


def tensor(window: object, offset: object, shape: object, stride: object, dtype: object = None) -> Tensor:
    """A tensor from fields of unknown origin: each is checked before anything is done with it."""
    if not isinstance(window, Window):
        raise CheckpointError(f"a tensor needs a storage, found {type(window).__name__}")
    name = window.storage.dtype if dtype is None else dtype
    if not isinstance(name, str) or name not in ITEMSIZES:
        raise CheckpointError("a tensor has a dtype that is none of " + ", ".join(ITEMSIZES))
    sizes, steps = _indices(shape, "shape"), _indices(stride, "stride")
    if len(sizes) != len(steps):
        raise CheckpointError(f"a tensor has {len(sizes)} extents and {len(steps)} strides")
    return Tensor(window, name, index(offset, "storage offset"), sizes, steps)


def index(value: object, what: str) -> int:
    """``value`` if it is an int that can index memory."""
    if type(value) is not int or not 0 <= value < INDEX_LIMIT:
        raise CheckpointError(f"a {what} is no int in [0, 2**63)")
    return value


def target_dtype(dtype: npt.DTypeLike | None) -> np.dtype[Any] | None:
    """The dtype that floating arrays are to have; None leaves them as they were saved."""
    if dtype is None:
        return None
    try:
        # NumPy knows the name bfloat16 only once ml_dtypes is imported.
        name = "bfloat16" if dtype == "bfloat16" else np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in TARGETS:
        raise DTypeError(f"load: dtype is {name}; floating arrays are made one of {', '.join(TARGETS)}")
    return numpy_dtype(name)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a PyTorch name; those that NumPy lacks come from ``ml_dtypes``."""
    if not name.startswith(("bfloat", "float8")):
        return np.dtype(name)
    try:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
    except (ImportError, AttributeError) as err:
        out = ', or load it widened, exactly, with dtype="float32"' if name == "bfloat16" else ""
        raise DTypeError(f"{name} is no NumPy dtype: install ml_dtypes (pip install 'npdwconv[interop]'){out}") from err


def _indices(values: object, what: str) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > MAX_RANK:
        raise CheckpointError(f"the {what} of a tensor is no tuple of at most {MAX_RANK} ints")
    return tuple(index(value, what) for value in values)


def _native(raw: npt.NDArray[np.uint8], dtype: str, byteorder: str) -> npt.NDArray[np.uint8]:
    unit = ITEMSIZES[dtype] // (2 if dtype.startswith("complex") else 1)
    return raw if unit == 1 or byteorder == sys.byteorder else raw.reshape(-1, unit)[:, ::-1].reshape(-1)


def _convert(raw: npt.NDArray[np.uint8], dtype: str, target: np.dtype[Any] | None) -> npt.NDArray[Any]:
    if dtype == "bool":
        return raw.astype(np.bool_)
    widens = dtype == "bfloat16" and target is not None and target.name != dtype
    saved: npt.NDArray[Any] = _widened(raw) if widens else raw.view(numpy_dtype(dtype))
    return saved if target is None or "float" not in dtype else saved.astype(target, copy=False)


def _widened(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """float32 from bfloat16, which is its upper half."""
    widened: npt.NDArray[np.float32] = np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return widened
