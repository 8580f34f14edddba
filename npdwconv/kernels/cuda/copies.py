"""Copies on the device between arrays of any strides and dtypes, and sums into them."""

from __future__ import annotations

from functools import cache
from typing import Any

from npdwconv.device import DeviceArray
from npdwconv.errors import DTypeError
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import vocabulary
from npdwconv.precision import storage

RANK = 5  # axes that a copy has: batch, channels and three of space
ARGUMENTS = (
    *("pi", "po", "count", "ib", "ob"),
    *(f"{letter}{axis}" for letter in "eio" for axis in range(RANK)),
)
THREADS = 8 if provider.simulated() else 256


@cache
def source(read: str, written: str, adds: bool) -> Source:
    """The kernel that writes, or adds, one element a thread."""
    text = Text("copy", ARGUMENTS)
    text("n = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x")
    with text.block("if n < count:"):
        text("i = ib", "o = ob")
        for axis in reversed(range(RANK)):
            text(f"k = n % e{axis}", f"n = n // e{axis}", f"i += k * i{axis}", f"o += k * o{axis}")
        text("v = read_i(at_i(pi, i), 0)")
        if adds:
            text("v = v + peek_o(at_o(po, o), 0)")
        text("store_o(at_o(po, o), 0, v)")
    return Source("copy", ARGUMENTS, text.text, vocabulary(i=read, o=written))


@cache
def _kernel(read: str, written: str, adds: bool) -> provider.Kernel:
    return provider.Kernel(source(read, written, adds), f"copy {read} {written} {adds}")


def copy(read: DeviceArray, written: DeviceArray, *, adds: bool = False) -> None:
    """written = read, or written += read; of one shape, on the stream of what is written."""
    count = read.size
    if not count:
        return
    if read.ndim > RANK:
        read, written = read.reshape(read.shape[0], -1), written.reshape(written.shape[0], -1)
    extents = (1,) * (RANK - read.ndim) + read.shape
    begin, ib, steps = _lowest(read)
    end, ob, stops = _lowest(written)
    _kernel(storage(read.dtype), storage(written.dtype), adds)(
        (-(-count // THREADS), 1, 1),
        (THREADS, 1, 1),
        written.stream,
        *(begin, end, count, ib, ob, *extents, *steps, *stops),
    )


def _lowest(array: DeviceArray) -> tuple[Any, int, tuple[int, ...]]:
    """Where the array's lowest element lies, how far above it the first is, and the strides, in elements."""
    size = array.itemsize
    if any(step % size for step, extent in zip(array.strides, array.shape, strict=True) if extent > 1):
        raise DTypeError(f"an array on the device has strides {array.strides}; needed multiples of its {size} bytes")
    steps = tuple(step // size for step in array.strides)
    above = sum(-step * (extent - 1) for step, extent in zip(steps, array.shape, strict=True) if step < 0)
    reach = 1 + sum(abs(step) * (extent - 1) for step, extent in zip(steps, array.shape, strict=True))
    place = provider.place(array.address - above * size, array.dtype, reach)
    return place, above, (0,) * (RANK - array.ndim) + steps
