"""Arrays as the kernels want them: C-contiguous and aligned, copied where they are not; and room for their own use."""

from __future__ import annotations

import threading
from math import prod

import numpy as np

from npdwconv.layouts import Array


def plain(array: Array) -> Array:
    """``array`` itself where it is C-contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def target(out: Array) -> Array:
    """Where a kernel may write what belongs in ``out``: itself, or a new array that `deliver` copies from."""
    flags = out.flags
    return out if flags.c_contiguous and flags.aligned else np.empty(out.shape, out.dtype)


def deliver(written: Array, out: Array) -> None:
    """Bring what was written to `target` into ``out``."""
    if written is not out:
        out[...] = written


LINE = 64  # bytes of a cache line, no less


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """A new array that begins with a cache line, as vectors are read and written fastest."""
    kind = np.dtype(dtype)
    memory = np.empty(prod(shape) * kind.itemsize + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + prod(shape) * kind.itemsize].view(kind).reshape(shape)


MOST = 8_000_000  # bytes that are kept


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.kept: dict[str, Array] = {}
        self.seen: dict[tuple[int, str, str], Array] = {}  # rooms as arrays of values: a view takes a microsecond


_rooms = _Rooms()
_MOST_SEEN = 256


def room(size: int, use: str = "") -> Array:
    """Bytes for a launch of this thread's, the same for each ``use``: of new memory, each page costs a fault."""
    memory = _rooms.kept.get(use)
    if memory is None or memory.nbytes < size:
        memory = aligned((size,), "uint8")
        if size <= MOST:
            _rooms.kept[use] = memory
            _rooms.seen.clear()
    return memory


def room_for(count: int, dtype: str, use: str) -> Array:
    """`room` for so many values, as an array of them."""
    found = _rooms.seen.get((count, dtype, use))
    if found is None:
        size = count * np.dtype(dtype).itemsize
        found = room(size, use)[:size].view(dtype)
        if size <= MOST:
            if len(_rooms.seen) >= _MOST_SEEN:
                _rooms.seen.clear()
            _rooms.seen[count, dtype, use] = found
    return found
