"""Checking room: what users pass -> checked arrays and plans. The only room where input may be wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np

from npdwconv.device import DeviceArray, adopted, on_device
from npdwconv.errors import DTypeError, OptionError, ShapeError
from npdwconv.layouts import LETTERS, Array, axes_text
from npdwconv.memory import empty
from npdwconv.precision import ACCUMULATORS, is_supported

_LARGEST = sys.maxsize
_EFFORT: Any = 10_000  # candidates that an exact overlap test may try before the bounds of the arrays decide
_OPERATOR_ERRORS = (ShapeError, DTypeError, OptionError)


@dataclass
class Call:
    """One call of a public operator: its name and operands, so that every error can show them."""

    name: str
    layout: str = "channels_first"
    operands: dict[str, Array] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in self.operands.items())
        return f"{shapes}; {self.layout}" if shapes else self.layout

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors raised inside name the operator and its operands' shapes."""
        try:
            yield
        except _OPERATOR_ERRORS as error:
            raise type(error)(f"{self.name}: {error} ({self})") from None

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the operands, of which there is one."""
        return next(iter(self.operands.values())).dtype

    def operand(self, name: str, value: Any) -> Array:
        """An operand as a NumPy array, without a copy; of a supported dtype, the same as its fellows'."""
        array = as_array(name, value)
        self._check_together(name, array)
        if not is_supported(array.dtype):
            raise DTypeError(
                f"{name} has dtype {array.dtype}; needed one of {', '.join(ACCUMULATORS)} in native byte order"
            )
        for other, fellow in self.operands.items():
            if fellow.dtype != array.dtype:
                raise DTypeError(
                    f"{name} has dtype {array.dtype}, {other} has {fellow.dtype}; "
                    f"needed one dtype for all operands, cast one with .astype()"
                )
        self.operands[name] = array
        return array

    def _check_together(self, name: str, array: Array) -> None:
        """All operands of a call lie in the host's memory, or all on a device."""
        for other, fellow in self.operands.items():
            if (type(array) is DeviceArray) != (type(fellow) is DeviceArray):
                places = [
                    f"{label} lies {'on a CUDA device' if type(value) is DeviceArray else 'in CPU memory'}"
                    for label, value in ((name, array), (other, fellow))
                ]
                raise DTypeError(f"{places[0]}, {places[1]}; needed all operands in one place, copy one")

    def optional(self, name: str, value: Any) -> Array | None:
        return None if value is None else self.operand(name, value)

    def activations(self, name: str, value: Any, rank: int | None) -> Array:
        """An operand (N, C, *spatial) in the call's layout; any rank from 2 on where ``rank`` is None."""
        array = self.operand(name, value)
        if rank is None:
            if array.ndim < 2:
                raise ShapeError(f"{name} has {array.ndim} axes; needed at least 2, batch and channels")
        else:
            check_rank(name, array.shape, rank, self.layout)
        return array

    def depthwise_weight(self, name: str, value: Any, rank: int) -> Array:
        """A depthwise weight (C·M, 1, *kernel), returned as (C·M, *kernel)."""
        array = self.operand(name, value)
        check_depthwise_shape(name, array.shape, rank)
        return array[:, 0]

    def pointwise_weight(self, name: str, value: Any, channels: int) -> Array:
        """A pointwise weight (K, C) or (K, C, 1, …), returned as (K, C)."""
        array = self.operand(name, value)
        check_pointwise_shape(name, array.shape, channels)
        return array.reshape(array.shape[:2])

    def vector(self, name: str, value: Any, length: int) -> Array | None:
        """A bias of ``length`` entries, or None."""
        array = self.optional(name, value)
        if array is not None:
            self.require(name, array, (length,), "one per output channel")
        return array

    def require(self, name: str, array: Array, shape: tuple[int, ...], what: str) -> None:
        if array.shape != shape:
            raise ShapeError(f"{name} has shape {array.shape}; needed {shape}, {what}")

    def result(self, out: Any, shape: tuple[int, ...]) -> Array:
        """``out`` where one was passed and fits, otherwise a new array of the operands' dtype."""
        dtype = self.dtype
        check_allocatable(shape, dtype.itemsize)
        fellow = next(iter(self.operands.values()))
        if out is None:
            return empty(fellow, shape, dtype)
        if type(fellow) is DeviceArray:
            return cast(Array, self._device_result(out, shape))
        if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise DTypeError(f"out is a {type(out).__name__}; needed a NumPy array {shape} of {dtype}")
        if out.dtype != dtype:
            raise DTypeError(f"out has dtype {out.dtype}; needed {dtype}, that of the operands")
        self.require("out", out, shape, "the shape of the result")
        self._check_writable(out)
        return out

    def _device_result(self, out: Any, shape: tuple[int, ...]) -> DeviceArray:
        """``out`` as a device array, where it fits."""
        if not on_device(out):
            raise DTypeError(f"out is a {type(out).__name__}; needed an array on the device, as the operands are")
        target = adopted("out", out)
        if target.dtype != self.dtype:
            raise DTypeError(f"out has dtype {target.dtype}; needed {self.dtype}, that of the operands")
        if target.shape != shape:
            raise ShapeError(f"out has shape {target.shape}; needed {shape}, the shape of the result")
        if not target.writable:
            raise OptionError("out is read-only; needed an array that can be written to")
        if _strides_meet(target):
            raise OptionError(f"out has elements that share memory (strides {target.strides}); needed distinct ones")
        for name, array in self.operands.items():
            if cast(DeviceArray, array).size and target.size and _ranges_meet(target, cast(DeviceArray, array)):
                raise OptionError(f"out shares memory with {name}; needed memory of its own, pass out=None or a copy")
        return target

    def _check_writable(self, out: Array) -> None:
        if not out.flags.writeable:
            raise OptionError("out is read-only; needed an array that can be written to")
        if _strides_meet(out):
            raise OptionError(f"out has elements that share memory (strides {out.strides}); needed distinct ones")
        for name, array in self.operands.items():
            if _overlap(out, array):
                raise OptionError(f"out shares memory with {name}; needed memory of its own, pass out=None or a copy")


def fits_plainly(out: Any, shape: tuple[int, ...], operands: Iterable[Array | None]) -> bool:
    """Whether ``out`` passes every check of `Call.result`, at a glance: a plain array far from every operand."""
    if type(out) is not np.ndarray or out.shape != shape:
        return False
    flags, dtype = out.flags, out.dtype
    if not (flags.c_contiguous and flags.writeable):
        return False
    for array in operands:
        if array is None:
            continue
        if type(array) is not np.ndarray or array.dtype != dtype or np.may_share_memory(out, array):
            return False
    return True


def as_array(name: str, value: Any) -> Array:
    """``value`` as a NumPy array sharing its memory: a NumPy array, or anything that speaks DLPack on the CPU."""
    if isinstance(value, np.ma.MaskedArray):
        raise DTypeError(f"{name} is a masked array, whose mask would be ignored; fill it first: {name}.filled(value)")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if on_device(value):
        return cast(Array, adopted(name, value))
    if not hasattr(value, "__dlpack__"):
        raise DTypeError(
            f"{name} is a {type(value).__name__}; needed a NumPy array or one that speaks DLPack, "
            f"for instance numpy.asarray({name}, dtype='float32')"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DTypeError(
            f"{name} is a {type(value).__name__} that NumPy could not take by DLPack: {error}; "
            f"needed an array in CPU memory, of a dtype NumPy has, detached from any gradient"
        ) from error


def check_rank(name: str, shape: tuple[int, ...], rank: int, layout: str) -> None:
    """A shape of activations has batch, channels and ``rank`` spatial axes."""
    if len(shape) != rank + 2:
        needed = axes_text(layout, "C", LETTERS[rank].spatial)
        raise ShapeError(f"{name} has shape {shape} with {len(shape)} axes; needed {rank + 2}, {needed}")


def check_depthwise_shape(name: str, shape: tuple[int, ...], rank: int) -> None:
    """A depthwise weight is (C·M, 1, *kernel), every kernel extent at least 1."""
    needed = f"needed {rank + 2} axes, (C·M, 1, {', '.join(LETTERS[rank].kernel)})"
    if len(shape) != rank + 2:
        hint = f": add an axis with {name}[:, None]" if len(shape) == rank + 1 else ""
        raise ShapeError(f"{name} has shape {shape} with {len(shape)} axes; {needed}{hint}")
    if shape[1] != 1:
        raise ShapeError(
            f"{name} has shape {shape}, its second axis is {shape[1]}; {needed}: "
            f"a transposed convolution's weight stored (C, M, …) is ours after .reshape(C·M, 1, …)"
        )
    if 0 in shape[2:]:
        raise ShapeError(f"{name} has shape {shape}, an empty kernel; needed extents of at least 1")


def check_pointwise_shape(name: str, shape: tuple[int, ...], channels: int) -> None:
    """A pointwise weight is (K, C), or (K, C, 1, …)."""
    if len(shape) < 2 or any(extent != 1 for extent in shape[2:]):
        raise ShapeError(f"{name} has shape {shape}; needed (K, C) or (K, C, 1, …)")
    if shape[1] != channels:
        raise ShapeError(f"{name} has shape {shape} for {shape[1]} input channels; needed (K, {channels})")


def check_multiplier(name: str, outputs: int, channels: int) -> None:
    """Depthwise output channels are a multiple of the input's, at least one each."""
    if outputs != channels * (outputs // channels if channels else 0) or (channels and not outputs):
        raise ShapeError(
            f"{name} has {outputs} output channels, x has {channels}; "
            f"output channels must be a multiple (1, 2, …) of the input's"
        )


def check_allocatable(shape: tuple[int, ...], itemsize: int) -> None:
    """No array may have more bytes than an address can count."""
    if prod(max(extent, 1) for extent in shape) * itemsize > _LARGEST:
        raise ShapeError(f"an array of shape {shape} would be needed, more than memory can address; pad or stride less")


def shape_tuple(name: str, value: Any) -> tuple[int, ...]:
    """A shape passed by the user: a sequence of ints of at least 0."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise OptionError(f"{name} is {value!r}; needed a shape, a tuple of ints")
    for extent in value:
        if isinstance(extent, bool) or not isinstance(extent, (int, np.integer)) or extent < 0:
            raise OptionError(f"{name} is {value!r}; needed a shape, a tuple of ints of at least 0")
    return tuple(int(extent) for extent in value)


def _overlap(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=_EFFORT)
    except np.exceptions.TooHardError:
        return np.may_share_memory(one, other)


def _ranges_meet(one: DeviceArray, other: DeviceArray) -> bool:
    (first, last), (begin, end) = one.bounds(), other.bounds()
    return first < end and begin < last


def _strides_meet(array: Array | DeviceArray) -> bool:
    """Whether two elements may share memory: some stride does not clear what the smaller ones cover."""
    covered = array.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < covered:
            return array.size > 0
        covered += stride * (extent - 1)
    return False
