"""How arrays come into the CUDA room and leave it: device arrays as they are, NumPy's by a copy in and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from npdwconv.device import DeviceArray, _new
from npdwconv.kernels.cuda import provider

Operand = Any  # a NumPy array or a DeviceArray, or None


def stream_of(operands: tuple[Operand, ...]) -> int:
    """The stream that a call takes: `use_stream`'s, or that of its first device array."""
    asked = provider.asked_stream()
    if asked is not None:
        return asked
    for operand in operands:
        if isinstance(operand, DeviceArray) and operand.stream != provider.LEGACY:
            return operand.stream
    return provider.LEGACY


@contextmanager
def entered(reads: tuple[Operand, ...], writes: tuple[Operand, ...]) -> Iterator[tuple[Any, ...]]:
    """Dense device arrays for what is read and what is written, on one stream; what is written leaves at the end."""
    stream = stream_of((*reads, *writes))
    inner = [_inside(operand, stream) for operand in reads]
    outer = [_target(operand, stream, reads, inner) for operand in writes]
    yield (*inner, *outer)
    for inside, outside in zip(outer, writes, strict=True):
        if isinstance(outside, np.ndarray):
            _leave(inside, outside)
        elif inside is not None and inside.address != outside.address:
            _on(outside, stream).assign(inside)


def _inside(operand: Operand, stream: int) -> DeviceArray | None:
    if operand is None:
        return None
    if isinstance(operand, DeviceArray):
        return _on(operand, stream).dense()
    made = _new(operand.shape, operand.dtype, stream)
    provider.to_device(made.address, np.ascontiguousarray(operand), stream)
    return made


def _on(array: DeviceArray, stream: int) -> DeviceArray:
    """The array on ``stream``, which waits for what the array's own was given."""
    if isinstance(array._owner, provider.Memory):
        array._owner.used_on(stream)
    if array.stream == stream:
        return array
    provider.wait_for(stream, array.stream)
    return DeviceArray(array._owner, array.address, array.shape, array.dtype, array.strides, stream, array.writable)


def _target(operand: Operand, stream: int, reads: tuple[Operand, ...], inner: list[DeviceArray | None]) -> Any:
    """Where a kernel may write: the array itself where it is dense; where it is also read, what is read of it."""
    if operand is None:
        return None
    for outside, inside in zip(reads, inner, strict=True):
        if outside is operand:
            return inside
    if isinstance(operand, DeviceArray):
        written = _on(operand, stream)
        operand.stream = stream  # where what is written to it can be waited for
        return written if operand.contiguous else _new(operand.shape, operand.dtype, stream)
    return _new(operand.shape, operand.dtype, stream)


def _leave(inside: DeviceArray, outside: Any) -> None:
    if outside.flags.c_contiguous:
        provider.to_host(outside, inside.address, inside.stream)
    else:
        outside[...] = inside.copy_to_host()


def place_of(array: DeviceArray | None) -> Any:
    """What a kernel is given for a dense array, or for none."""
    return 0 if array is None else provider.place(array.address, array.dtype, array.size)


def aligned(array: DeviceArray) -> int:
    """How many elements lie aligned together at the array's beginning: a power of two, up to 16 bytes."""
    low = array.address & -array.address
    return (min(low, 16) if low else 16) // array.dtype.itemsize
